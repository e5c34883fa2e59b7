// Addresses: which may be links, and where they end.

/** An address that may be shown as a link, or null. Only http and https, and nobody's password. */
export function safeHref(text) {
  if (!/^https?:\/\//i.test(text)) return null;
  try {
    const url = new URL(text);
    return url.protocol.startsWith("http") && !url.username && !url.password ? url.href : null;
  } catch {
    return null;
  }
}

/** A link, shown as `kids`. */
export function linkNode(href, kids) {
  return { tag: "a", href, kids };
}

/** An address in a sentence, without what ends the sentence. */
export function withoutEnd(url) {
  let end = url.length;
  while (end > 0 && ".,;:!?*_~'\"]".includes(url[end - 1])) end -= 1;
  const text = url.slice(0, end);
  return text.endsWith(")") && !text.includes("(") ? withoutEnd(text.slice(0, -1)) : text;
}
