// From trees of plain objects to the document. Only elements and attributes of this file's lists
// can come about, and text is always a text node: there is no way from a string to markup.

const TAGS = new Set(
  (
    "p h3 h4 h5 h6 ul ol li blockquote hr br div span table thead tbody tr th td pre code " +
    "strong em del a button"
  ).split(" "),
);
const CLASSES = new Set(",code,code-head,copy-code,table,math,math block,right,center".split(","));

/** An element with properties (`class`, `dataset`, attributes by name) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Make the children of an element, from `first` on, those of a tree; equal ones are left alone. */
export function patch(parent, nodes, first = null) {
  let child = first;
  for (const node of nodes) child = patchOne(parent, child, node);
  while (child) {
    const next = child.nextSibling;
    child.remove();
    child = next;
  }
}

function patchOne(parent, child, node) {
  if (typeof node === "string") return patchText(parent, child, node);
  if (!TAGS.has(node.tag)) throw new Error(`no element of a text: ${node.tag}`);
  let target = child;
  if (child?.nodeName.toLowerCase() !== node.tag) {
    target = document.createElement(node.tag);
    if (child) child.replaceWith(target);
    else parent.append(target);
  }
  setAttributes(target, node);
  patch(target, node.kids ?? [], target.firstChild);
  return target.nextSibling;
}

function patchText(parent, child, text) {
  if (child?.nodeType !== Node.TEXT_NODE) {
    const made = document.createTextNode(text);
    if (child) child.replaceWith(made);
    else parent.append(made);
    return made.nextSibling;
  }
  const old = child.data;
  // what is selected stays selected while a text grows
  if (text.length > old.length && text.startsWith(old)) child.appendData(text.slice(old.length));
  else if (text !== old) child.data = text;
  return child.nextSibling;
}

function setAttributes(target, node) {
  if (!CLASSES.has(node.class ?? "")) throw new Error(`no class of a text: ${node.class}`);
  set(target, "class", node.class || undefined);
  set(target, "dir", node.dir);
  set(target, "tabindex", node.tabindex);
  set(target, "role", node.role);
  set(target, "aria-label", node.label);
  if (node.tag === "ol") set(target, "start", node.start);
  if (node.tag === "button") set(target, "type", "button");
  if (node.tag === "a") {
    // `safeHref` made it; whatever came from elsewhere goes nowhere
    const isSafe = /^https?:\/\//i.test(node.href);
    set(target, "href", isSafe ? node.href : undefined);
    set(target, "title", node.href);
    set(target, "target", "_blank");
    set(target, "rel", "noopener noreferrer nofollow");
  }
}

function set(target, name, value) {
  if (value === undefined) {
    if (target.hasAttribute(name)) target.removeAttribute(name);
  } else if (target.getAttribute(name) !== String(value)) {
    target.setAttribute(name, String(value));
  }
}
