// Markdown as language models write it, rendered into DOM nodes. No HTML is ever parsed, so nothing that a
// model writes can run.

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const BULLET = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const INLINE = new RegExp(
  [
    "(`+)(?<code>[^`](?:.*?[^`])?)\\1(?!`)",
    "!?\\[(?<label>[^\\]]*)\\]\\((?<target>[^\\s)]+)[^)]*\\)",
    "(?<url>https?://[^\\s<>\"')\\]]+)",
    "\\*\\*(?<strong>\\S(?:.*?\\S)?)\\*\\*",
    "(?<![\\w*])\\*(?<em>[^\\s*](?:[^*]*[^\\s*])?)\\*(?!\\w)",
    "(?<!\\w)_(?<under>[^\\s_](?:[^_]*[^\\s_])?)_(?!\\w)",
    "~~(?<del>.+?)~~",
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+.!|~<>-])",
  ].join("|"),
  "s",
);

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Return the nodes of a text, block by block.
export function render(text) {
  return blocks(text.split("\n"));
}

function blocks(lines) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      const end = findFrom(lines, at + 1, (one) => one.trim().startsWith(fence[1]));
      nodes.push(codeBlock(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (/^#{1,6}\s/.test(line)) {
      const level = /^#+/.exec(line)[0].length;
      nodes.push(element(`h${Math.min(level + 2, 6)}`, {}, ...inline(line.slice(level).trim())));
      at += 1;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      nodes.push(element("hr"));
      at += 1;
    } else if (/^\s*>/.test(line)) {
      const end = findFrom(lines, at, (one) => !/^\s*>/.test(one));
      const inner = lines.slice(at, end).map((one) => one.replace(/^\s*> ?/, ""));
      nodes.push(element("blockquote", {}, ...blocks(inner)));
      at = end;
    } else if (BULLET.test(line)) {
      const kind = listKind(line);
      const end = findFrom(lines, at + 1, (one, index) => !inList(one, lines[index + 1]) || /^\S/.test(one) && listKind(one) !== kind);
      nodes.push(list(lines.slice(at, end)));
      at = end;
    } else if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[at + 1] ?? "")) {
      const end = findFrom(lines, at + 2, (one) => !one.includes("|"));
      nodes.push(table(lines.slice(at, end)));
      at = end;
    } else {
      const end = findFrom(lines, at + 1, (one) => !one.trim() || FENCE.test(one) || BULLET.test(one) || /^(#{1,6}\s|\s*>)/.test(one));
      nodes.push(element("p", {}, ...inline(lines.slice(at, end).join("\n"))));
      at = end;
    }
  }
  return nodes;
}

function findFrom(lines, start, matches) {
  for (let at = start; at < lines.length; at += 1) if (matches(lines[at], at)) return at;
  return lines.length;
}

const listKind = (line) => (/^\s*\d/.test(line) ? "ol" : "ul");

// Return whether a line goes on with the list before it: an item, an indented line, or a blank before one.
function inList(line, next) {
  if (!line.trim()) return next !== undefined && (BULLET.test(next) || /^\s{2,}\S/.test(next));
  return BULLET.test(line) || /^\s{2,}\S/.test(line);
}

function list(lines) {
  const [, indent, marker] = BULLET.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const bullet = BULLET.exec(line);
    if (bullet && bullet[1].length <= indent.length) items.push([bullet[3]]);
    else items.at(-1).push(line.replace(/^\s{1,4}/, ""));
  }
  const start = parseInt(marker, 10) || 1;
  return element(listKind(lines[0]), start === 1 ? {} : { start }, ...items.map(listItem));
}

function listItem(lines) {
  const [first, ...rest] = blocks(lines);
  const content = first?.tagName === "P" ? [...first.childNodes] : first ? [first] : [];
  return element("li", {}, ...content, ...rest);
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const row = (line, tag) => element("tr", {}, ...cells(line).map((cell) => element(tag, {}, ...inline(cell))));
  return element("div", { class: "table" }, element("table", {},
    element("thead", {}, row(lines[0], "th")),
    element("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")))));
}

export function codeBlock(text, language = "") {
  const copy = element("button", { class: "copy", type: "button", onclick: async () => {
    await navigator.clipboard?.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return element("figure", { class: "code" }, element("figcaption", {}, language, copy), element("pre", {}, element("code", {}, text)));
}

function inline(text) {
  const nodes = [];
  let rest = text;
  for (let match; (match = INLINE.exec(rest));) {
    if (match.index) nodes.push(rest.slice(0, match.index));
    nodes.push(...span(match));
    rest = rest.slice(match.index + match[0].length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}

function span({ 0: whole, groups }) {
  if (groups.code !== undefined) return [element("code", {}, groups.code.replace(/^ (.*) $/, "$1"))];
  if (groups.target !== undefined) return [link(groups.target, inline(groups.label || groups.target), whole)];
  if (groups.url !== undefined) return [link(groups.url, [groups.url], whole)];
  if (groups.strong !== undefined) return [element("strong", {}, ...inline(groups.strong))];
  if (groups.del !== undefined) return [element("del", {}, ...inline(groups.del))];
  if (groups.escaped !== undefined) return [groups.escaped];
  return [element("em", {}, ...inline(groups.em ?? groups.under))];
}

// Images become links as well: the page loads nothing from elsewhere.
function link(target, children, whole) {
  if (!/^(https?:|mailto:)/i.test(target)) return whole;
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
