// The few ways in which the page touches the document. All of them write only what has changed, and text only as text.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** Makes a copy of a template; its parts go by what their `data-part` says. */
export function copy(template) {
  const root = byId(template).content.firstElementChild.cloneNode(true);
  return { root, parts: partsOf(root) };
}

/** The parts within an element. */
export function partsOf(root) {
  const parts = {};
  for (const node of root.querySelectorAll("[data-part]")) parts[node.dataset.part] = node;
  return parts;
}

/** Makes an element. */
export function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** Sets the text of an element that holds nothing else. */
export function write(node, text) {
  const known = node.firstChild;
  if (known === null) {
    if (text !== "") node.append(text);
  } else if (known.data !== text) known.data = text;
}

/** Sets an attribute, or takes it away. */
export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? "" : value);
}

/** Shows or hides an element. */
export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

/** Sets a custom property of an element's style. */
export function style(node, name, value) {
  if (node.style.getPropertyValue(name) !== value) node.style.setProperty(name, value);
}

/** Points an icon at a symbol of the page. */
export function icon(svg, name) {
  mark(svg.firstElementChild, "href", `#icon-${name}`);
}

/** Children of an element that stand for items: each keeps its view for as long as its key is there. */
export class Keyed {
  /** `make(item)` gives `{ root, update(item) }`. */
  constructor(parent, keyOf, make) {
    this.parent = parent;
    this.keyOf = keyOf;
    this.make = make;
    this.views = new Map();
  }

  update(items) {
    const left = new Set(this.views.keys());
    let next = this.parent.firstElementChild;
    for (const item of items) {
      const key = this.keyOf(item);
      left.delete(key);
      const view = this.view(key, item);
      view.update(item);
      if (view.root === next) next = next.nextElementSibling;
      else place(this.parent, view.root, next);
    }
    for (const key of left) {
      this.views.get(key).root.remove();
      this.views.delete(key);
    }
  }

  view(key, item) {
    let view = this.views.get(key);
    if (view === undefined) {
      view = this.make(item);
      this.views.set(key, view);
    }
    return view;
  }
}

/** Moves a node without taking the focus from what is in it. */
function place(parent, node, next) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  parent.insertBefore(node, next);
  if (focused !== null && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

/** A list of any length of which only what can be seen has nodes: rows of one height, used again while it scrolls. */
export class LongList {
  /** `make()` gives `{ root, update(item) }`; the height of a row is the style's `--row`. */
  constructor(scroller, make) {
    this.scroller = scroller;
    this.make = make;
    this.items = [];
    this.rows = [];
    this.first = 0;
    /** How far it is scrolled: asking for it while the page is being written would lay the page out. */
    this.top = 0;
    this.space = element("div", "space");
    scroller.append(this.space);
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.measure()).observe(scroller);
    this.measure();
  }

  measure() {
    this.height = parseFloat(getComputedStyle(this.scroller).getPropertyValue("--row")) || 40;
    this.fits = Math.ceil(this.scroller.clientHeight / this.height) + 4;
    while (this.rows.length < this.fits) this.rows.push(this.newRow());
    this.draw();
  }

  newRow() {
    const row = this.make();
    row.root.hidden = true;
    this.space.append(row.root);
    return row;
  }

  scrolled() {
    this.top = this.scroller.scrollTop;
    this.draw();
  }

  set(items) {
    this.items = items;
    this.draw();
  }

  draw() {
    style(this.space, "block-size", `${this.items.length * this.height}px`);
    const most = Math.max(0, this.items.length - this.rows.length);
    const first = Math.min(most, Math.max(0, Math.floor(this.top / this.height) - 2));
    this.turn(first);
    for (let offset = 0; offset < this.rows.length; offset += 1) {
      const place = first + offset;
      const row = this.rows[offset];
      show(row.root, place < this.items.length);
      if (place >= this.items.length) continue;
      style(row.root, "transform", `translateY(${place * this.height}px)`);
      mark(row.root, "aria-posinset", place + 1);
      mark(row.root, "aria-setsize", this.items.length);
      row.update(this.items[place]);
    }
  }

  /** Rows that have left at one end go to the other, so that their order stays the one that is seen. */
  turn(first) {
    const steps = first - this.first;
    this.first = first;
    if (Math.abs(steps) >= this.rows.length) return;
    for (let step = 0; step < steps; step += 1) {
      const row = this.rows.shift();
      this.rows.push(row);
      this.space.append(row.root);
    }
    for (let step = 0; step > steps; step -= 1) {
      const row = this.rows.pop();
      this.rows.unshift(row);
      this.space.prepend(row.root);
    }
  }
}
