// Markdown of a model's answer as elements. What is not understood stays text, and so does HTML: there is no path from
// the text to the parser of the browser. Links lead to http, https and mailto alone; pictures are links, not fetched.

import { copy, el } from "./dom.js";
import { formula } from "./formula.js";
import { inline } from "./inline.js";

const DEEPEST = 12; // lists and quotes within each other
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>[ ]?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?: {1,4}|\t|$)/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const DISPLAY = [["$$", "$$"], ["\\[", "\\]"]];

/** Show `text` in `target`, whose elements for blocks that stayed the same are kept: a selection in them stays, too. */
export function render(target, text) {
  const found = blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
  const before = target.shown ?? [];
  let same = 0;
  while (same < found.length && same < before.length && found[same].source === before[same].source) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...found.slice(same).map((block) => block.build()));
  target.shown = found;
}

/** Top-level blocks, each with the lines it was made from. */
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const { end, build } = blockAt(lines, at, depth);
    // Whether it is the last counts: an open fence, a table that grows.
    found.push({ source: `${lines.slice(at, end).join("\n")}\n${end}`, build });
    at = end;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  return (
    fence(lines, at) ??
    display(lines, at) ??
    (HEADING.test(line) ? heading(line, at) : null) ??
    (RULE.test(line) ? { end: at + 1, build: () => el("hr") } : null) ??
    (depth < DEEPEST && QUOTE.test(line) ? quote(lines, at, depth) : null) ??
    (depth < DEEPEST && ITEM.test(line) ? list(lines, at, depth) : null) ??
    table(lines, at) ??
    paragraph(lines, at, depth)
  );
}

const built = (lines, depth) => blocks(lines, depth).map((block) => block.build());

function fence(lines, at) {
  const match = FENCE.exec(lines[at]);
  if (!match) return null;
  const [, marks, info] = match;
  const indent = lines[at].search(/\S/);
  let end = at + 1;
  const closes = (line) => line.trim().length >= marks.length && line.trim() === marks[0].repeat(line.trim().length);
  while (end < lines.length && !closes(lines[end])) end += 1;
  const blanks = (line) => line.length - line.trimStart().length;
  const body = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, blanks(line))));
  return { end: Math.min(end + 1, lines.length), build: () => code(body.join("\n"), info.trim().split(/\s/)[0]) };
}

function code(text, language) {
  const button = el("button.plain", { type: "button", onclick: () => copy(text, button) }, "Copy");
  const head = el("figcaption", {}, el("span", {}, language || "text"), button);
  return el("figure.code", {}, head, el("pre", { tabindex: "0" }, el("code", {}, text)));
}

/** A formula on lines of its own, as it is written. */
function display(lines, at) {
  const pair = DISPLAY.find(([open]) => lines[at].trimStart().startsWith(open));
  if (!pair) return null;
  const [open, close] = pair;
  for (let end = at; end < lines.length && lines[end].trim(); end += 1) {
    const line = end === at ? lines[end].trimStart().slice(open.length) : lines[end];
    if (!line.trimEnd().endsWith(close)) continue;
    const text = lines.slice(at, end + 1).join("\n").trim().slice(open.length, -close.length).trim();
    return { end: end + 1, build: () => formula(text, true) };
  }
  return null;
}

function heading(line, at) {
  const [, marks, text = ""] = HEADING.exec(line);
  const tag = `h${Math.min(6, marks.length + 2)}`; // below those of the page
  return { end: at + 1, build: () => el(tag, {}, inline(text)) };
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { end, build: () => el("blockquote", {}, built(inside, depth + 1)) };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at])[2];
  const ordered = /\d/.test(first);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length && !RULE.test(lines[end])) {
    const match = ITEM.exec(lines[end]);
    if (!match || match[2].at(-1) !== first.at(-1)) break;
    const own = [lines[end].slice(match[0].length)];
    end = takeItem(lines, end + 1, match, own);
    const written = own.findLastIndex((line) => line.trim()) + 1;
    const parted = written < own.length && end < lines.length && ITEM.test(lines[end]);
    own.length = Math.max(1, written);
    loose ||= parted || own.some((line) => !line.trim());
    items.push(own);
  }
  const number = Number.parseInt(first, 10);
  const start = ordered && number !== 1 ? number : null;
  return { end, build: () => el(ordered ? "ol" : "ul", { start }, items.map((own) => item(own, loose, depth))) };
}

/** Take the lines that belong to an item: indented ones, blank ones between, and those that go on with its text. */
function takeItem(lines, at, [marked, indented, mark], own) {
  const width = Math.max(marked.length, indented.length + mark.length + 1);
  let end = at;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const indent = line.search(/\S/);
    const nested = indent >= indented.length + 2 && ITEM.test(line.trimStart());
    const goesOn = own.at(-1).trim() && ![ITEM, FENCE, HEADING, RULE, QUOTE].some((block) => block.test(line));
    if (indent >= 0 && indent < width && !nested && !goesOn) break;
    own.push(indent < 0 ? "" : line.slice(Math.min(indent, width)));
  }
  return end;
}

function item(lines, loose, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(lines[0]);
  const inside = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const done = task && task[1] !== " ";
  const box = task && el("input", { type: "checkbox", disabled: true, checked: done, "aria-label": "task" });
  const children = built(inside, depth + 1);
  // The paragraphs of a tight list are its lines.
  const opened = (child) => (child.tagName === "P" ? [...child.childNodes] : [child]);
  return el(task ? "li.task" : "li", {}, box, loose ? children : children.flatMap(opened));
}

function table(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !DIVIDER.test(lines[at + 1])) return null;
  const head = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((cell) => (/^:?-+:$/.test(cell) ? (cell[0] === ":" ? "center" : "end") : ""));
  if (sides.length !== head.length) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const cell = (tag, text, side) => el(tag, { class: side || null }, inline(text ?? ""));
  const row = (texts, tag) => el("tr", {}, head.map((_, index) => cell(tag, texts[index], sides[index])));
  const build = () =>
    el("div.table", { tabindex: "0", role: "region", "aria-label": "Table" },
      el("table", {},
        el("thead", {}, row(head, "th")),
        el("tbody", {}, lines.slice(at + 2, end).map((line) => row(cells(line), "td")))));
  return { end, build };
}

/** Of a row: a bar that is escaped or in a code span does not part cells. */
function cells(line) {
  const found = [""];
  let ticks = false;
  const text = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  for (let at = 0; at < text.length; at += 1) {
    const bar = text[at] === "\\" && text[at + 1] === "|";
    if (text[at] === "`") ticks = !ticks;
    if (text[at] === "|" && !ticks) found.push("");
    else found[found.length - 1] += bar ? "|" : text[at];
    if (bar) at += 1;
  }
  return found.map((cell) => cell.trim());
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  const ends = (line, index) =>
    !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) ||
    DISPLAY.some(([open]) => line.trimStart().startsWith(open)) ||
    (depth < DEEPEST && (QUOTE.test(line) || /^ {0,3}([-*+]|1[.)])[ \t]+\S/.test(line))) ||
    table(lines, index) !== null;
  while (end < lines.length && !ends(lines[end], end)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n");
  return { end, build: () => el("p", {}, inline(text)) };
}
