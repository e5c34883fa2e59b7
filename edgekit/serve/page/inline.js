// Markdown within a block, as a tree of plain objects: a string, or {tag, kids, …}. Nothing here
// touches the document. The time is linear in the length of the text, whatever is written in it: no
// expression backtracks over more than a bounded stretch, and the stack of what is open is short.

import { linkNode, safeHref, withoutEnd } from "./links.js";

const MAX_OPEN = 32;
const SPACE = /\s/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const PLAIN = /[^\\`*_~[\]!<&\n$hH]+/y;
const BARE_URL = /https?:\/\/[^\s<>"`]{1,2048}/iy;
const ANGLED_URL = /<(https?:\/\/[^\s<>]{1,2048})>/iy;
const DESTINATION =
  /\([ \n]{0,8}(?:<([^<>\n]{0,2048})>|((?:[^\s()<>]|\([^\s()<>]{0,512}\)){0,2048}))(?:[ \n]{1,8}(?:"[^"\n]{0,512}"|'[^'\n]{0,512}'))?[ \n]{0,8}\)/y;
const LINE_BREAK = /<br ?\/?>/iy;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/iy;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const MATH_ENDS = { "\\(": "\\)", "\\[": "\\]", $$: "$$" };

/** The tree of a text. `isOpen`: more of it is to come, so what is open may yet be closed. */
export function parseInline(text, isOpen = false) {
  return new Inline(text, isOpen).parse();
}

class Inline {
  constructor(text, isOpen) {
    this.text = text;
    this.isOpen = isOpen;
    this.at = 0;
    this.out = [];
    this.open = []; // {mark, count, index of its text in `out`}
    this.ticks = null; // positions of runs of backticks by their length
    this.hasNoEnd = new Set(); // kinds of math that nothing closes any more
  }

  parse() {
    while (this.at < this.text.length) this.step();
    if (this.isOpen) this.closeOpen();
    return joined(this.out);
  }

  step() {
    const { text, at } = this;
    const plain = this.match(PLAIN);
    if (plain) return this.take(plain[0], plain[0].length);
    switch (text[at]) {
      case "\\":
        return this.backslash();
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.emphasis();
      case "!":
        return text[at + 1] === "[" ? this.bracket("![") : this.take("!", 1);
      case "[":
        return this.bracket("[");
      case "]":
        return this.link();
      case "<":
        return this.angle();
      case "&":
        return this.entity();
      case "\n":
        return this.take({ tag: "br" }, 1);
      case "$":
        return text[at + 1] === "$" ? this.math("$$") : this.take("$", 1);
      default:
        return this.address();
    }
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  take(node, length) {
    this.out.push(node);
    this.at += length;
  }

  backslash() {
    const next = this.text[this.at + 1] ?? "";
    if (next === "(" || next === "[") return this.math(`\\${next}`);
    if (next === "\n") return this.take({ tag: "br" }, 2);
    const isEscape = next !== "" && next < "\u007f" && PUNCTUATION.test(next);
    return isEscape ? this.take(next, 2) : this.take("\\", 1);
  }

  /** Formulas are shown as they were written: emphasis in them would only break them. */
  math(mark) {
    const begin = this.at + 2;
    let end = this.hasNoEnd.has(mark) ? -1 : this.text.indexOf(MATH_ENDS[mark], begin);
    if (end < 0) {
      this.hasNoEnd.add(mark);
      if (!this.isOpen) return this.take(mark === "$$" ? mark : mark[1], 2);
      end = this.text.length;
    }
    const isBlock = mark !== "\\(";
    const kids = [this.text.slice(begin, end).trim()];
    this.out.push({ tag: "span", class: isBlock ? "math block" : "math", kids });
    this.at = Math.min(end + 2, this.text.length);
    return undefined;
  }

  code() {
    this.ticks ??= findTicks(this.text);
    const length = runLength(this.text, this.at);
    const begin = this.at + length;
    const places = this.ticks.get(length) ?? [];
    while (places.length && places[places.length - 1] < begin) places.pop();
    let end = places.pop();
    if (end === undefined) {
      if (!this.isOpen || length > 2) return this.take("`".repeat(length), length);
      if (begin === this.text.length) return this.take("", length);
      end = this.text.length;
    }
    let inner = this.text.slice(begin, end).replaceAll("\n", " ");
    if (inner[0] === " " && inner.at(-1) === " " && inner.trim()) inner = inner.slice(1, -1);
    this.out.push({ tag: "code", dir: "ltr", kids: [inner] });
    this.at = Math.min(end + length, this.text.length);
    return undefined;
  }

  emphasis() {
    const { text, at } = this;
    const mark = text[at];
    let count = runLength(text, at);
    const [before, after] = [text[at - 1] ?? " ", text[at + count] ?? " "];
    const [canOpen, canClose] = flanks(mark, before, after);
    const isLast = this.isOpen && at + count === text.length;
    this.at += count;
    if (mark === "~" && count !== 2) return void this.out.push("~".repeat(count));
    if (canClose) count = this.closeEmphasis(mark, count);
    if (count && canOpen) return this.push(mark, count);
    if (count && !isLast) this.out.push(mark.repeat(count));
    return undefined;
  }

  closeEmphasis(mark, given) {
    let count = given;
    while (count) {
      const level = this.open.findLastIndex((one) => one.mark === mark);
      if (level < 0 || (mark === "~" && this.open[level].count !== count)) break;
      const size = Math.min(2, count, this.open[level].count);
      this.wrap(level, size);
      count -= size;
    }
    return count;
  }

  wrap(level, size) {
    const opener = this.open[level];
    const kids = joined(this.out.splice(opener.index + 1));
    opener.count -= size;
    this.out[opener.index] = opener.mark.repeat(opener.count);
    this.open.length = opener.count ? level + 1 : level;
    const tag = opener.mark === "~" ? "del" : size === 2 ? "strong" : "em";
    this.out.push({ tag, kids });
  }

  push(mark, count) {
    if (this.open.length === MAX_OPEN) this.open.shift();
    this.open.push({ mark, count, index: this.out.length });
    this.out.push(mark[0] === "!" ? mark : mark.repeat(count));
  }

  bracket(mark) {
    this.at += mark.length;
    this.push(mark, 1);
  }

  link() {
    const level = this.open.findLastIndex((one) => one.mark.endsWith("["));
    this.at += 1;
    if (level < 0) return void this.out.push("]");
    const opener = this.open[level];
    const found = this.match(DESTINATION);
    const href = found && safeHref(found[1] ?? found[2]);
    if (href) {
      this.at += found[0].length;
      this.wrapLink(opener, href);
      this.open.length = level;
      // there are no links in links
      this.open = this.open.filter((one) => !one.mark.endsWith("["));
      return undefined;
    }
    if (!found && this.isOpen && this.isUnfinishedLink()) {
      this.out[opener.index] = ""; // its address is still being written: the text alone, until then
      this.at = this.text.length;
    } else {
      this.out.push("]");
    }
    this.open.splice(level, 1);
    return undefined;
  }

  wrapLink(opener, href) {
    const kids = joined(this.out.splice(opener.index + 1));
    const isImage = opener.mark === "![";
    // an image is never fetched: its text is a link to it
    const label = isImage ? ["image: ", ...(kids.length ? kids : [href])] : kids;
    this.out[opener.index] = linkNode(href, label.length ? label : [href]);
  }

  isUnfinishedLink() {
    const left = this.text.length - this.at;
    return left < 2048 && /^\((?:<|h(?:t|$)|$)[^\s)]*$/i.test(this.text.slice(this.at));
  }

  angle() {
    const url = this.match(ANGLED_URL);
    const href = url && safeHref(url[1]);
    if (href) return this.take(linkNode(href, [url[1]]), url[0].length);
    const line = this.match(LINE_BREAK);
    return line ? this.take({ tag: "br" }, line[0].length) : this.take("<", 1);
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) return this.take("&", 1);
    const [whole, decimal, hex, name] = found;
    const code = decimal ? Number(decimal) : hex ? Number.parseInt(hex, 16) : 0;
    const isCharacter = code > 31 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
    const text = name ? ENTITIES[name.toLowerCase()] : isCharacter && String.fromCodePoint(code);
    return this.take(text || whole, whole.length);
  }

  address() {
    const isWithinWord = /[\p{L}\p{N}]/u.test(this.text[this.at - 1] ?? " ");
    const found = isWithinWord ? null : this.match(BARE_URL);
    const text = found && withoutEnd(found[0]);
    const href = text && safeHref(text);
    if (!href) return this.take(this.text[this.at], 1);
    return this.take(linkNode(href, [text]), text.length);
  }

  /** What is certain to be closed later looks already as it will. */
  closeOpen() {
    for (let level = this.open.length - 1; level >= 0; level -= 1) {
      const { mark, count, index } = this.open[level];
      if (mark.endsWith("[") || count !== 2) continue;
      if (this.out.length > index + 1) this.wrap(level, 2);
    }
  }
}

function findTicks(text) {
  const places = new Map();
  for (let at = text.indexOf("`"); at >= 0;) {
    const length = runLength(text, at);
    if (!places.has(length)) places.set(length, []);
    places.get(length).push(at);
    at = text.indexOf("`", at + length);
  }
  for (const list of places.values()) list.reverse(); // the next one is the last
  return places;
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** Whether a run of marks can open and close emphasis (CommonMark 0.31, 6.2). */
function flanks(mark, before, after) {
  const [spaceBefore, spaceAfter] = [SPACE.test(before), SPACE.test(after)];
  const [signBefore, signAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
  const left = !spaceAfter && (!signAfter || spaceBefore || signBefore);
  const right = !spaceBefore && (!signBefore || spaceAfter || signAfter);
  if (mark !== "_") return [left, right];
  return [left && (!right || signBefore), right && (!left || signAfter)];
}

/** Neighbouring strings as one, so that a text is one node. */
function joined(nodes) {
  const out = [];
  let words = [];
  for (const node of nodes) {
    if (typeof node === "string") {
      words.push(node);
      continue;
    }
    if (words.length) out.push(words.join(""));
    words = [];
    out.push(node);
  }
  if (words.length) out.push(words.join(""));
  return out.filter((node) => node !== "");
}
