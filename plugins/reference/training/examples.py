"""Hand-written examples that show the teacher the tone to write in. They stand in its prompts, never in the corpus."""


def told(text: str) -> str:
    """Join the lines of each paragraph of an indented text."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


STORIES: tuple[tuple[str, str], ...] = (
    (
        "a kind girl named Mary, a blue kite and a hill",
        told(
            """
            Once upon a time, there was a kind girl named Mary. Mary had a blue kite, and she loved to fly it on
            the hill.

            One day, the wind was very strong. The kite flew up and up, and then it got stuck in a tall tree.
            Mary was sad. "How can I get my kite back?" she asked.

            A tall man came up the hill. "I can help you," he said. He climbed the tree and took the kite down.
            Mary was so happy that she clapped her hands. "Thank you!" she said. Then they flew the kite
            together until the sun went down.
            """
        ),
    ),
    (
        "a small bear named Bill who cannot sleep",
        told(
            """
            Bill was a small bear who lived in a warm cave with his mother. One night, Bill could not sleep. He
            turned to the left, and he turned to the right, but his eyes stayed open.

            "Mother, I am not tired," he said. His mother smiled and took him outside. They sat on a rock and
            looked at the stars. "Let us count them," she said.

            Bill counted ten stars, and then twenty. The night was quiet, and his mother was soft and warm.
            Before he could count to thirty, he was asleep.
            """
        ),
    ),
    (
        "an old sailor named Tobias, a golden coin and an island",
        told(
            """
            An old sailor named Tobias lived alone on a small island. Every morning he walked along the beach to
            look for shells. One morning he found a golden coin in the sand.

            Tobias did not know what to do with it. There was no shop on the island, and he had all the fish he
            could eat. So he put the coin in a bottle with a letter and threw it into the sea.

            Many weeks later, a boat came to the island. A boy and his father were in it. They had found the
            bottle. "We wanted to meet you," said the boy. From that day on, Tobias had friends who visited him
            every summer.
            """
        ),
    ),
    (
        "a proud rooster named Carlo who learns to share",
        told(
            """
            On a small farm there lived a proud rooster named Carlo. He had a big pile of corn, and he did not
            want to share it. "This is my corn," he told the hens.

            Then winter came, and it was very cold. Carlo sat alone in the corner and shivered. The hens sat
            close together and kept each other warm. Carlo had a lot of corn, but he was cold and lonely.

            At last he carried his corn to the hens. "Please eat with me," he said. The hens made room for him,
            and soon he was warm. Carlo learned that sharing makes everyone happy.
            """
        ),
    ),
    (
        "a boy named Nick and a broken clock",
        told(
            """
            Nick was playing with his ball in the house, although his father had told him not to. The ball hit
            the clock, and the clock fell down and broke.

            Nick was afraid. He wanted to hide the clock under his bed. But then he thought about his father,
            who always told the truth. So Nick went to him and said, "I broke the clock. I am sorry."

            His father was not angry. "Thank you for telling me," he said. "Let us try to fix it." They worked
            all afternoon, and in the evening the clock went tick, tick, tick again.
            """
        ),
    ),
    (
        "a tiny ant named Susi who wants to cross the river",
        told(
            """
            A tiny ant named Susi wanted to see the other side of the river. The river was wide, and Susi could
            not swim. She sat down on a stone and thought for a long time.

            A leaf came floating by. "That can be my boat!" said Susi. She jumped on the leaf, and the water
            carried her along. The waves went up and down, but Susi held on tight.

            On the other side there were sweet berries and green grass. Susi ate until she was full. Then she
            looked for another leaf, because it was time to go home and tell her sisters.
            """
        ),
    ),
)

DIALOGS: tuple[tuple[str, str], ...] = (
    ("What is a frog?", "A frog is a small green animal. It can jump far, and it lives near water."),
    ("Hello!", "Hello! It is nice to meet you. How are you today?"),
    (
        "How do I make a card?",
        "Fold a piece of paper in half and draw a picture on it. Then write some kind words inside.",
    ),
    ("I am afraid.", "I am sorry that you are afraid. You can talk to someone you trust, and it will get better."),
    ("Why do people sing?", "People sing because it makes them happy. A song can also tell a story."),
    ("Name three tools.", "Three tools are a saw, a screwdriver and a drill."),
    ("What does a plumber do?", "A plumber fixes pipes and taps so that people have clean water at home."),
    ("What is fog?", "Fog is a cloud that is close to the ground. It is hard to see far when there is fog."),
    ("What is the opposite of heavy?", "The opposite of heavy is light."),
    ("What do you do with a needle?", "You use a needle to sew. You can fix a hole in your clothes with it."),
    ("Where does a polar bear live?", "A polar bear lives in the far north, where it is very cold."),
    ("Thank you for the story.", "You are welcome! I am glad that you liked it."),
    (
        "What can I do with old boxes?",
        "You can build a little house with old boxes. You can also use them to keep your things.",
    ),
    ("Do you like ducks?", "Yes, ducks are nice birds. They can swim and fly, and their feathers are soft."),
)
