// Markdown's blocks, as a tree of plain objects (see inline.js). Written for what models write,
// while they write it: a table is one from its first line on, a list may be indented by two, a `---`
// under a text is a line and not a heading, every line break is one, and indented code is just text.

import { parseInline } from "./inline.js";
import { aligns, cells, tableNode } from "./tables.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]{1,4})|$)/;
const UNDERLINE = /^ {0,3}=+[ \t]*$/;
/** The last line of a text that goes on: it may become anything yet. */
const UNDECIDED = /^ {0,8}(?:[`~]{1,2}|#{1,6} ?|[-*+_=]{1,3} ?|\d{1,9}[.)]? ?|> ?)$/;

/** Blocks of a text: `[{line, node}]`, with the line each begins in. `isOpen`: more is to come. */
export function parseBlocks(lines, isOpen = false, depth = 0) {
  const reader = new Reader(lines, isOpen, depth);
  return reader.read();
}

/** Whether the unfinished last line says too little to be shown. */
export function isUndecided(line) {
  return UNDECIDED.test(line);
}

class Reader {
  constructor(lines, isOpen, depth) {
    this.lines = lines;
    this.isOpen = isOpen;
    this.depth = depth;
    this.at = 0;
  }

  read() {
    const blocks = [];
    while (this.at < this.lines.length) {
      const line = this.at;
      if (isBlank(this.lines[line])) {
        this.at += 1;
        continue;
      }
      blocks.push({ line, node: this.block() });
    }
    return blocks;
  }

  block() {
    const line = this.lines[this.at];
    const fence = FENCE.exec(line);
    if (fence) return this.fence(fence);
    if (this.depth >= MAX_DEPTH) return this.paragraph();
    if (HEADING.test(line)) return this.heading();
    if (RULE.test(line)) {
      this.at += 1;
      return { tag: "hr" };
    }
    if (QUOTE.test(line)) return this.quote();
    if (ITEM.test(line)) return this.list();
    if (this.isTable()) return this.table();
    return this.paragraph();
  }

  /** Whether nothing comes after this line, and more of it may. */
  isEnd() {
    return this.isOpen && this.at >= this.lines.length;
  }

  inline(text) {
    return parseInline(text, this.isEnd());
  }

  inner(lines) {
    const blocks = parseBlocks(lines, this.isEnd(), this.depth + 1);
    return blocks.map((block) => block.node);
  }

  fence([, mark, info]) {
    const indent = indentOf(this.lines[this.at]);
    const end = new RegExp(`^ {0,3}\\${mark[0]}{${mark.length},}[ \\t]*$`);
    const first = this.at + 1;
    this.at = first;
    while (this.at < this.lines.length && !end.test(this.lines[this.at])) this.at += 1;
    const lines = this.lines.slice(first, this.at);
    this.at += 1;
    const text = lines.map((line) => dedent(line, indent)).join("\n");
    return codeNode(info.trim().split(/\s/, 1)[0].slice(0, 32), text);
  }

  heading() {
    const line = this.lines[this.at];
    const [whole, marks] = HEADING.exec(line);
    this.at += 1;
    const text = line.slice(whole.length).trim();
    // the page has h1, and h2 says who speaks
    const tag = `h${Math.min(6, marks.length + 2)}`;
    return { tag, dir: "auto", kids: this.inline(withoutMarks(text)) };
  }

  quote() {
    const lines = [];
    for (; this.at < this.lines.length; this.at += 1) {
      const line = this.lines[this.at];
      if (QUOTE.test(line)) lines.push(line.replace(QUOTE, ""));
      else if (isBlank(line) || isStart(line)) break;
      else lines.push(line);
    }
    return { tag: "blockquote", dir: "auto", kids: this.inner(lines) };
  }

  list() {
    const [, , marker] = ITEM.exec(this.lines[this.at]);
    const isOrdered = marker.length > 1;
    const kind = marker.at(-1);
    const items = [];
    while (this.at < this.lines.length) {
      const found = ITEM.exec(this.lines[this.at]);
      if (!found || found[2].at(-1) !== kind || RULE.test(this.lines[this.at])) break;
      items.push(this.itemNode(this.item(found)));
    }
    const start = Number.parseInt(marker, 10);
    return isOrdered ? { tag: "ol", start, kids: items } : { tag: "ul", kids: items };
  }

  /** The lines of an item, as if it were a text of its own. */
  item([whole, lead, marker]) {
    const width = whole.length;
    const least = lead.length + 2; // models indent by two, whatever the marker's width
    const lines = [this.lines[this.at].slice(width)];
    let blanks = 0;
    for (this.at += 1; this.at < this.lines.length; this.at += 1) {
      const line = this.lines[this.at];
      const indent = indentOf(line);
      if (isBlank(line)) {
        blanks += 1;
        continue;
      }
      if (indent < least && (blanks || isStart(line) || ITEM.test(line))) break;
      for (; blanks; blanks -= 1) lines.push("");
      lines.push(dedent(line, Math.max(least, lead.length + marker.length + 1)));
    }
    return lines;
  }

  itemNode(lines) {
    const task = /^\[([ xX])\] /.exec(lines[0]);
    const rest = task ? [lines[0].slice(4), ...lines.slice(1)] : lines;
    const nodes = this.inner(rest);
    const isOne = nodes.filter((node) => node.tag === "p").length === 1;
    // an item with one text is that text, whether blank lines are around it or not
    const kids = isOne ? nodes.flatMap((n) => (n.tag === "p" ? n.kids : [n])) : nodes;
    if (task) kids.unshift(task[1] === " " ? "☐ " : "☑ ");
    return { tag: "li", dir: "auto", kids };
  }

  isTable() {
    const [head, below] = [this.lines[this.at], this.lines[this.at + 1]];
    if (!head.includes("|")) return false;
    const isLast = this.at + (below === undefined ? 1 : 2) >= this.lines.length;
    // while it is written, a line that begins with a bar is a table's
    const isLikely = this.isOpen && isLast && /^ {0,3}\|/.test(head);
    if (below === undefined || isBlank(below)) return isLikely && below === undefined;
    if (isLikely && /^[ |:-]*$/.test(below)) return true;
    return aligns(below)?.length === cells(head).length;
  }

  table() {
    const head = cells(this.lines[this.at]);
    const sides = aligns(this.lines[this.at + 1] ?? "") ?? [];
    const rows = [];
    for (this.at += 2; this.at < this.lines.length; this.at += 1) {
      const line = this.lines[this.at];
      if (isBlank(line) || isStart(line)) break;
      rows.push(cells(line));
    }
    this.at = Math.min(this.at, this.lines.length);
    return tableNode(head, sides, rows, this.isEnd());
  }

  paragraph() {
    const lines = [this.lines[this.at]];
    for (this.at += 1; this.at < this.lines.length; this.at += 1) {
      const line = this.lines[this.at];
      if (UNDERLINE.test(line)) {
        this.at += 1;
        return { tag: "h3", dir: "auto", kids: this.inline(lines.join("\n")) };
      }
      if (isBlank(line) || isStart(line) || this.isTable()) break;
      lines.push(line);
    }
    const text = lines.map((line) => line.trim()).join("\n");
    return { tag: "p", dir: "auto", kids: this.inline(text) };
  }
}

/** Whether a line begins another block in the middle of a text. */
function isStart(line) {
  const item = ITEM.exec(line);
  // a number other than 1 is more likely to be part of the sentence, and so is a lone dash
  const isItem = item !== null && item[3] !== undefined && /^(?:[-*+]|1[.)])$/.test(item[2]);
  return isItem || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function codeNode(language, text) {
  const name = { tag: "span", kids: language ? [language] : [] };
  const button = { tag: "button", class: "copy-code", label: "Copy this code", kids: ["Copy"] };
  const head = { tag: "div", class: "code-head", kids: [name, button] };
  const code = { tag: "code", kids: text ? [text] : [] };
  const pre = { tag: "pre", dir: "ltr", tabindex: 0, label: "Code", role: "region", kids: [code] };
  return { tag: "div", class: "code", kids: [head, pre] };
}

function isBlank(line) {
  return line.trim() === "";
}

/** Columns before the text of a line; a tab is four of them. */
function indentOf(line) {
  let columns = 0;
  for (let i = 0; line[i] === " " || line[i] === "\t"; i += 1) columns += line[i] === " " ? 1 : 4;
  return columns;
}

/** A line without so many columns of what it is indented by. */
function dedent(line, columns) {
  let i = 0;
  for (let left = columns; left > 0 && (line[i] === " " || line[i] === "\t"); i += 1) {
    left -= line[i] === " " ? 1 : 4;
  }
  return line.slice(i);
}

function withoutMarks(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  return end === 0 || text[end - 1] === " " ? text.slice(0, end).trimEnd() : text;
}
