// What a page shows, as the browser computed it: run by test_pages.py.
() => {
  const channels = text => (text.match(/[\d.]+/g) || []).map(Number);
  const over = (top, below) => top.slice(0, 3).map((value, at) => value * (top[3] ?? 1) + below[at] * (1 - (top[3] ?? 1)));
  const luminance = rgb => {
    const [r, g, b] = rgb.map(value => value / 255).map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => (layer.length === 3 || layer[3] > 0 ? over(layer, below) : below), canvas);
  };
  const texts = [...document.querySelectorAll("body *")].filter(element =>
    [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()) &&
    element.checkVisibility() && !element.closest(".vh, title"));
  const pale = texts.map(element => {
    const style = getComputedStyle(element);
    const below = behind(element);
    const colour = channels(element instanceof SVGElement ? style.fill : style.color);
    return [contrast(over(colour, below), below), element.tagName, element.textContent.trim().slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
  const levels = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(heading => Number(heading.tagName[1]));
  const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
  return {
    texts: texts.length,
    pale: pale,
    overflow: document.documentElement.scrollWidth - innerWidth,
    language: document.documentElement.lang,
    title: document.title,
    topHeadings: levels.filter(level => level === 1).length,
    skippedHeadings: levels.filter((level, at) => at > 0 && level > levels[at - 1] + 1),
    headersWithoutScope: [...document.querySelectorAll("th:not([scope])")].map(header => header.textContent),
    tablesWithoutHeaders: [...document.querySelectorAll("table")].filter(table => !table.tHead).length,
    nameless: [...document.querySelectorAll("svg, [role=region]")].filter(each => !each.getAttribute("aria-label")).length,
    emptyLinks: [...document.links].filter(link => !link.textContent.trim()).length,
    repeatedIds: ids.filter((id, at) => ids.indexOf(id) !== at),
    deadAnchors: [...document.links].filter(link => link.hash && link.pathname === location.pathname &&
      !document.getElementById(decodeURIComponent(link.hash.slice(1)))).map(link => link.hash),
    links: [...document.links].map(link => link.href.split("#")[0]),
  };
}
