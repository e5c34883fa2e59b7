// A text in markdown that is shown while it is written. Blocks that are complete are never looked
// at again; of the last ones only what differs is changed. If that takes long it is done less
// often, so that the page always has most of its time for its reader.

import { isUndecided, parseBlocks } from "./blocks.js";
import { patch } from "./dom.js";

const SLOW_MS = 4;
const SHARE = 8; // of nine milliseconds eight are not spent here

export class Markdown {
  #root;
  #onShown;
  #text = "";
  #isOpen = true;
  #isOver = false;
  #start = 0; // where the first block begins that may still change
  #frozen = 0; // elements before it
  #timer = 0;
  #frame = 0;
  #notBefore = 0;

  /** Shown within `root`; `onShown` is called after each change of it. */
  constructor(root, onShown = () => {}) {
    this.#root = root;
    this.#onShown = onShown;
  }

  get text() {
    return this.#text;
  }

  append(text) {
    this.#text += text;
    if (this.#timer || this.#frame) return;
    const wait = Math.max(0, this.#notBefore - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.#frame = requestAnimationFrame(() => this.#showInTime());
    }, wait);
  }

  /** Nothing follows. What was cut short (`isWhole` false) looks as if it went on. */
  finish(isWhole) {
    this.#isOpen = !isWhole;
    this.#isOver = true;
    clearTimeout(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#show();
  }

  #showInTime() {
    this.#frame = 0;
    const began = performance.now();
    this.#show();
    const now = performance.now();
    if (now - began > SLOW_MS) this.#notBefore = now + (now - began) * SHARE;
  }

  #show() {
    const lines = this.#text.slice(this.#start).split("\n");
    const count = lines.length;
    const lengths = lines.map((line) => line.length + 1);
    const shown = lines.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
    if (!this.#isOver && isUndecided(shown[count - 1])) shown.pop();
    const blocks = parseBlocks(shown, this.#isOpen);
    const nodes = blocks.map((block) => block.node);
    patch(this.#root, nodes, this.#root.children[this.#frozen] ?? null);
    this.#freeze(blocks, lengths);
    this.#onShown();
  }

  /** Once two lines of a block are complete, those before it stay as they are. */
  #freeze(blocks, lengths) {
    const last = blocks.findLastIndex((block) => block.line < lengths.length - 2);
    if (last <= 0) return;
    for (const length of lengths.slice(0, blocks[last].line)) this.#start += length;
    this.#frozen += last;
  }
}
