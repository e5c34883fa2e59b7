// Tables: their rows as texts, and as a tree (see inline.js).

import { parseInline } from "./inline.js";

const MAX_COLUMNS = 64;

/** The texts of a row: split at bars that no backslash stands before. */
export function cells(line) {
  const text = line.trim();
  const found = [];
  let cell = "";
  for (let i = text[0] === "|" ? 1 : 0; i < text.length; i += 1) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      cell += "|";
      i += 1;
    } else if (text[i] === "|") {
      found.push(cell.trim());
      cell = "";
    } else {
      cell += text[i];
    }
  }
  if (cell.trim() || !text.endsWith("|")) found.push(cell.trim());
  return found;
}

/** The sides that columns are aligned to; null: this is no row of dashes. */
export function aligns(line) {
  const found = cells(line);
  if (!line.includes("-") || !found.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return found.map((cell) => {
    if (!cell.endsWith(":")) return "";
    return cell.startsWith(":") ? "center" : "right";
  });
}

/** A table that can be scrolled sideways, as wide as its head. `isOpen`: more is to come. */
export function tableNode(head, sides, rows, isOpen) {
  const width = Math.min(head.length, MAX_COLUMNS);
  const cell = (tag, text, side) => ({
    tag,
    dir: "auto",
    class: side ?? "",
    kids: parseInline(text ?? "", isOpen),
  });
  const row = (tag, texts) => ({
    tag: "tr",
    kids: Array.from({ length: width }, (_, i) => cell(tag, texts[i], sides[i])),
  });
  const body = { tag: "tbody", kids: rows.map((texts) => row("td", texts)) };
  const table = { tag: "table", kids: [{ tag: "thead", kids: [row("th", head)] }, body] };
  return { tag: "div", class: "table", tabindex: 0, role: "region", label: "Table", kids: [table] };
}
