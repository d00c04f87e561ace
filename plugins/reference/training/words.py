"""The word lists from which prompts are drawn; nothing here is copied into the corpus except through the prompts."""


def listed(text: str) -> list[str]:
    """Split a list written over several lines, its entries parted by bars."""
    return [" ".join(entry.split()) for entry in text.split("|")]


NAMES = listed(
    """
    Anna|Ben|Clara|Daniel|Ella|Finn|Grace|Henry|Ivy|Jack|Kate|Leo|Lily|Max|Mia|Nora|Oscar|Paul|
    Rosa|Sam|Tim|Tom|Una|Victor|Wendy|Zoe|Amy|Bella|Carl|Dora|Emil|Fred|Greta|Hugo|Ida|Jonas|Kim|
    Lena|Milo|Nina|Otto|Pip|Ruby|Sara|Theo|Vera|Will|Maya|Noah|Lucy|Peter|Molly|Toby|Sophie|Felix|
    Alice|Simon|Emma|Joe|Tara|Luna|Bruno|Daisy|Rex|Coco|Poppy|Bobo|Fuzzy|Sunny
    """
)

ANIMALS = listed(
    """
    cat|dog|fox|rabbit|mouse|bear|bird|duck|frog|owl|turtle|squirrel|hedgehog|pig|cow|horse|sheep|
    goat|hen|kitten|puppy|lion|tiger|elephant|monkey|giraffe|zebra|penguin|whale|dolphin|fish|crab|
    snail|bee|butterfly|ant|ladybug|spider|deer|wolf|mole|beaver|otter|seal|parrot|swan|goose|donkey|
    camel|koala|panda|crow|bat
    """
)

PEOPLE = listed(
    """
    boy|girl|farmer|baker|teacher|doctor|sailor|painter|king|queen|prince|princess|gardener|fisherman|
    grandmother|grandfather|nurse|tailor|musician|builder|shepherd|cook|librarian|knight|clown|dancer|
    pilot|postman|carpenter|explorer|firefighter|inventor|dragon|robot|giant|wizard|fairy|snowman|
    little ghost|little train
    """
)

PLACES = listed(
    """
    garden|forest|village|farm|castle|kitchen|school|park|beach|river|lake|mountain|meadow|market|
    library|old house|barn|island|cave|city|bridge|hill|playground|bakery|train station|ship|treehouse|
    attic|field|pond|zoo|museum|desert|snowy valley|little town|tower|harbor|shop|jungle|backyard
    """
)

OBJECTS = listed(
    """
    ball|book|kite|lamp|key|hat|boat|drum|bell|box|apple|cake|flower|map|stone|shell|feather|
    blanket|bicycle|clock|mirror|basket|umbrella|coat|spoon|bucket|rope|candle|ring|coin|toy car|doll|
    balloon|puzzle|whistle|guitar|letter|ladder|wagon|pumpkin|carrot|cookie|scarf|shoe|pencil|
    paintbrush|seed|star|leaf|nest|egg|honey pot|pillow|picture|flute|crown|magic wand|snowball|
    sandcastle|lantern|telescope|jar of jam|cup of tea|bread|cupcake|button|sled|teddy bear
    """
)

TRAITS = listed(
    """
    little|kind|shy|brave|clever|lazy|happy|curious|young|old|quiet|funny|tiny|big|gentle|sleepy|
    lonely|friendly|hungry|careful|proud|silly|cheerful|strong|wise
    """
)

COLORS = listed(
    """
    red|blue|green|yellow|golden|silver|white|black|orange|purple|pink|brown|shiny|tiny|big|old|new|
    magic|broken
    """
)

EVENTS = listed(
    """
    gets lost and finds the way home|learns to share|makes a new friend|is afraid of the dark|
    wants to learn to swim|helps a friend who is sad|loses something important|plans a surprise party|
    finds a secret door|wants to fly|breaks something and tells the truth|has a birthday|waits for the snow|
    bakes something for the first time|tries to catch a star|helps in a storm|learns to be patient|wins a race|
    cannot sleep|says sorry to a friend|plants a seed and waits|builds a little house|goes on a trip|
    hears a strange noise|sings in front of everyone|has a bad day that gets better|tells a lie and is sorry|
    saves a small animal|finds a treasure|wants to be bigger|moves to a new place|learns to read|
    gets a present|cleans up a big mess|is too proud to ask for help|meets someone very different|
    goes to the sea|sees the moon|stays home on a rainy day|works hard and is happy
    """
)

THINGS = listed(
    """
    sun|moon|star|tree|flower|river|mountain|rainbow|cloud|book|house|car|train|boat|bridge|school|
    clock|chair|table|lamp|window|door|garden|farm|kitchen|bed|shoe|hat|umbrella|bicycle|ball|kite|
    apple|banana|orange|carrot|potato|cookie|cake|sandwich|egg|spoon|cup|key|phone|camera|computer|
    robot|drum|guitar|piano|song|story|poem|letter|map|island|beach|desert|forest|lake|volcano|
    planet|rocket|castle|king|friend|family|teacher|doctor|baby|birthday|holiday|game|puzzle|dream|
    seed|leaf|nest|feather|shell|stone|candle|mirror|blanket|pillow|ladder|hammer|bucket|basket|rope|
    bell|ring|coin|toy
    """
)

STUFF = listed(
    """
    water|snow|rain|wind|ice|fire|milk|bread|honey|rice|soup|cheese|sugar|salt|sand|gold|wood|
    paper|glass|music|light|sleep|love|time|gravity|electricity|friendship|winter|summer|spring|autumn|
    air|soil|wool|chocolate|tea|weather|kindness|courage|laughter
    """
)

JOBS = listed(
    """
    teacher|doctor|baker|farmer|pilot|sailor|nurse|cook|painter|builder|firefighter|police officer|
    gardener|tailor|librarian|singer|dentist|carpenter|scientist|postman|fisherman|mechanic|writer|
    dancer|bus driver|vet
    """
)

FOODS = listed(
    """
    tea|soup|bread|a cake|a sandwich|pancakes|a salad|lemonade|popcorn|cookies|rice|pasta|pizza|
    an omelette|jam|hot chocolate|apple pie|a fruit salad|porridge|toast
    """
)

ACTIVITIES = listed(
    """
    sleep better|make a friend|learn to read|grow a flower|draw a cat|learn to swim|ride a bicycle|
    stay healthy|save money|clean my room|help my mother|be kind|tell a good story|fly a kite|
    build a sandcastle|wake up early|take care of a dog|take care of a plant|learn to cook|write a letter|
    say sorry|be brave|learn a song|keep warm in winter|stay cool in summer|have fun at home|plan a party|
    make a paper boat|wash my hands|remember things
    """
)

HABITS = listed(
    """
    eat vegetables|drink water|sleep early|brush my teeth|read books|share my toys|say thank you|
    tell the truth|listen to my teacher|help other people|wash my hands|play outside|be kind to animals|
    learn new things|save water|say sorry|exercise|wear a hat in the sun|be patient|keep my room clean
    """
)

FEELINGS = listed(
    """
    happy|sad|tired|bored|angry|lonely|scared|excited|hungry|nervous|sick|proud|worried|cold|sleepy|
    thirsty
    """
)

CATEGORIES = listed(
    """
    fruits|animals|colors|vegetables|toys|birds|flowers|sports|foods|drinks|trees|jobs|
    musical instruments|things in a kitchen|things in a school|farm animals|sea animals|insects|seasons|
    things that can fly|things that are round|things that are cold|parts of the body|rooms in a house|
    kinds of weather
    """
)

OPPOSITES = listed(
    """
    big|hot|fast|happy|up|day|old|long|hard|light|full|early|loud|strong|clean|dry|open|near|rich|
    sweet|brave|kind|wet|dark|high|thin|soft|new|cold|slow|sad
    """
)

COUNTRIES = listed(
    """
    France|Germany|Italy|Spain|England|Japan|China|India|Canada|Russia|Egypt|Greece|Portugal|Norway|
    Sweden|Poland|Ireland|Austria|Kenya|Peru
    """
)

GREETINGS = listed(
    """
    Hello!|Hi!|Hi there!|Hello, how are you?|How are you today?|Good morning!|Good evening!|Good night!|
    Hey!|Nice to meet you.|Thank you!|Thank you very much.|Thanks for your help.|Goodbye!|See you tomorrow!|
    What can you do?|Can you help me?|Who are you?|What are you?|Do you like stories?|Are you a robot?|
    I have a question.|I like you.|You are very kind.|What should we do today?|Can we be friends?|
    What makes you happy?|Tell me something nice.|Tell me something interesting.|Say hello.|I had a good day.|
    I had a bad day.|I am bored. What can I do?|Can you tell me a joke?|What should I read?|It is raining.|
    It is sunny today.|I cannot sleep.|Today is my birthday!|I miss my friend.|I lost my toy.|My dog is sick.|
    I am going to school.|I made a cake!|I have a new cat.
    """
)

FOLLOW_UPS = listed(
    """
    Tell me more.|Why?|Thank you!|Can you give me an example?|That is interesting.|Really?|What else?|
    Is that true?|I see. Thanks!|How do you know?|I like that.|Can you explain it in another way?|
    That is funny.|Goodbye!|I did not know that.|Do you like it?
    """
)
