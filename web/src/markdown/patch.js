// Makes a node equal to another one and touches only what differs, so that a selection, the focus and
// the scroll position inside it stay.

/** @param {Node} old part of the page @param {Node} wanted what it is to be; is used up */
export function patch(old, wanted) {
  if (old.isEqualNode(wanted)) return;
  if (old instanceof Text && wanted instanceof Text) {
    if (wanted.data.startsWith(old.data)) old.appendData(wanted.data.slice(old.data.length));
    else old.data = wanted.data;
    return;
  }
  const both = old instanceof Element && wanted instanceof Element;
  // Maths has styles, which the page's policy lets no attribute set.
  if (!both || old.nodeName !== wanted.nodeName || old.localName === "math") {
    old.parentNode?.replaceChild(wanted, old);
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!wanted.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...wanted.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const children = [...wanted.childNodes];
  while (old.childNodes.length > children.length) old.lastChild?.remove();
  children.forEach((child, i) => {
    const before = old.childNodes[i];
    if (before) patch(before, child);
    else old.append(child);
  });
}
