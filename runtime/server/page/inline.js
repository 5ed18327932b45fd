// What stands within a line of Markdown: emphasis, code, links, formulas. One pass over the text, with a stack of what
// is open, so that the work grows with the text alone however it is written.

import { el } from "./dom.js";
import { formula } from "./formula.js";

const LONGEST = 2000; // of a formula or an address
const DEEPEST = 6; // links within emphasis within links
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const SAFE = /^(?:https?:\/\/|mailto:)/i;
const AUTOLINK = /^https?:\/\/[^\s<>]*[^\s<>.,:;"')\]!?*_~]/i;
const UNLINKED = "This address is not shown as a link.";
const TAGS = { "*": "em", "**": "strong", _: "em", __: "strong", "~~": "del" };

/** Nodes for a text. */
export function inline(text, depth = 0) {
  const reader = new Reader(text, depth);
  return reader.read();
}

class Reader {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.frames = [{ mark: "", nodes: [] }];
    this.plain = "";
    this.closing = matching(text);
    this.ticks = null; // runs of backticks, by length
    this.passed = new Map(); // how many of them lie behind
  }

  read() {
    while (this.at < this.text.length) this.step();
    this.flush();
    while (this.frames.length > 1) this.unwind();
    return this.frames[0].nodes;
  }

  step() {
    const char = this.text[this.at];
    if (char === "\\") return this.escape();
    if (char === "`") return this.code();
    if (char === "\n") return this.newline();
    if (char === "!" && this.text[this.at + 1] === "[" && this.link(this.at + 1, "Picture: ")) return;
    if (char === "[" && this.link(this.at, "")) return;
    if (char === "<" && this.angle()) return;
    if (char === "h" && this.address()) return;
    if (char === "$" && this.dollars()) return;
    if (char === "*" || char === "_" || char === "~") return this.emphasis(char);
    this.take(char);
  }

  take(text) {
    this.plain += text;
    this.at += text.length;
  }

  flush() {
    if (this.plain) this.frames.at(-1).nodes.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  push(node, length) {
    this.flush();
    this.frames.at(-1).nodes.push(node);
    this.at += length;
  }

  escape() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "(" && this.delimited("\\(", "\\)")) return;
    if (next === "[" && this.delimited("\\[", "\\]")) return;
    if (next === "\n") return this.push(el("br"), 2);
    if (!PUNCTUATION.test(next)) return this.take("\\");
    this.at += 1;
    this.take(next);
  }

  delimited(open, close) {
    const rest = this.text.slice(this.at + open.length, this.at + LONGEST);
    const end = rest.indexOf(close);
    if (end < 0) return false;
    this.push(formula(rest.slice(0, end), false), open.length + end + close.length);
    return true;
  }

  /** $x$ is a formula where its dollars touch it and no digit follows: "$5 and $6" are prices. */
  dollars() {
    const found = /^\$([^\s$](?:[^$\n]{0,200}[^\s$])?)\$(?!\d)/.exec(this.text.slice(this.at, this.at + 220));
    if (!found || !/[\\^_={}]|^[A-Za-z]'*(?:\([^()]*\))?$/.test(found[1])) return false;
    this.push(formula(found[1], false), found[0].length);
    return true;
  }

  code() {
    const marks = /^`+/.exec(this.text.slice(this.at))[0];
    const end = this.closingTicks(marks.length);
    if (end < 0) return this.take(marks);
    const inside = this.text.slice(this.at + marks.length, end).replace(/\n/g, " ");
    const stripped = /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside;
    this.push(el("code", {}, stripped), end + marks.length - this.at);
  }

  /** Where the next run of so many backticks stands. */
  closingTicks(length) {
    if (!this.ticks) this.ticks = Map.groupBy([...this.text.matchAll(/`+/g)], ([run]) => run.length);
    const runs = this.ticks.get(length) ?? []; // one whose first tick is escaped is shorter than it stands there
    let at = this.passed.get(length) ?? 0;
    while (at < runs.length && runs[at].index <= this.at) at += 1;
    this.passed.set(length, at);
    return runs[at]?.index ?? -1;
  }

  newline() {
    const hard = this.plain.endsWith("  ");
    this.plain = this.plain.trimEnd();
    if (hard) return this.push(el("br"), 1);
    this.take("\n");
  }

  link(open, before) {
    const close = this.closing.get(open);
    if (close === undefined || this.depth >= DEEPEST || this.text[close + 1] !== "(") return false;
    const target = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/.exec(
      this.text.slice(close + 1, close + LONGEST),
    );
    if (!target) return false;
    const inside = inline(this.text.slice(open + 1, close), this.depth + 1);
    const length = close + 1 + target[0].length - this.at;
    if (leadsOut(target[1])) this.push(anchor(target[1], [before, ...inside]), length);
    else this.push(el("span.unlinked", { title: UNLINKED }, before, inside, ` (${target[1]})`), length);
    return true;
  }

  angle() {
    const found = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/i.exec(this.text.slice(this.at, this.at + LONGEST));
    if (!found || !leadsOut(found[1])) return false;
    this.push(anchor(found[1], [found[1]]), found[0].length);
    return true;
  }

  address() {
    const found = /^https?:/i.test(this.text.slice(this.at, this.at + 6))
      ? AUTOLINK.exec(this.text.slice(this.at, this.at + LONGEST))
      : null;
    if (!found || !leadsOut(found[0])) return false;
    this.push(anchor(found[0], [found[0]]), found[0].length);
    return true;
  }

  emphasis(char) {
    let end = this.at;
    while (this.text[end] === char) end += 1;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    let left = end - this.at;
    this.at = end;
    if (char === "~" ? left !== 2 : left > 3) {
      this.plain += char.repeat(left);
      return;
    }
    const inWord = char === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after);
    const parted = !PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before);
    const opens = !/\s/.test(after) && !inWord && parted;
    const closes = !/\s/.test(before) && !inWord;
    if (closes) left = this.close(char, left);
    if (opens) this.open(char, left);
    else this.plain += char.repeat(left);
  }

  close(char, left) {
    while (left) {
      const index = this.frames.findLastIndex((frame) => frame.mark[0] === char && frame.mark.length <= left);
      if (index < 1) return left;
      while (this.frames.length > index + 1) this.unwind();
      this.flush();
      const { mark, nodes } = this.frames.pop();
      this.frames.at(-1).nodes.push(el(TAGS[mark], {}, nodes));
      left -= mark.length;
    }
    return 0;
  }

  open(char, left) {
    if (!left) return;
    if (this.frames.length > 3 * DEEPEST) {
      this.plain += char.repeat(left);
      return;
    }
    this.flush();
    const marks = left === 3 ? [char.repeat(2), char] : [char.repeat(left)];
    for (const mark of marks) this.frames.push({ mark, nodes: [] });
  }

  /** What was opened and not closed is text. */
  unwind() {
    this.flush();
    const { mark, nodes } = this.frames.pop();
    this.frames.at(-1).nodes.push(document.createTextNode(mark), ...nodes);
  }
}

const leadsOut = (address) => SAFE.test(address) && URL.canParse(address);

function anchor(href, children) {
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}

/** Where each square bracket closes. */
function matching(text) {
  const found = new Map();
  const open = [];
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "[") open.push(at);
    else if (text[at] === "]" && open.length) found.set(open.pop(), at);
  }
  return found;
}
