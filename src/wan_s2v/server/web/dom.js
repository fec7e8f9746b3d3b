// Finding and making elements; the only file that knows the DOM's verbose names.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with properties, listeners (`onclick`), attributes (`aria-label`) and children (nodes or text). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** An icon of index.html, by the name of its symbol. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  return svg;
}

/** Shows an element with this text, or hides it where there is none. */
export function say(element, text) {
  if (element.textContent !== (text || "")) element.textContent = text || ""; // live regions speak whatever is written
  element.hidden = !text;
}

/** Shows a list with these lines, or hides it where there are none. */
export function list(element, lines) {
  element.replaceChildren(...(lines || []).map((line) => make("li", {}, line)));
  element.hidden = !lines?.length;
}

/** Calls `receive(file)` for a file chosen in an input, also if it is the same one again. */
export function onFile(input, receive) {
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) receive(file);
  });
}

/** Calls `receive(files)` for files dropped on an element, which carries the class "over" while they hover. */
export function acceptDrops(element, receive) {
  let depth = 0;
  const hover = (change) => {
    depth = Math.max(0, depth + change);
    element.classList.toggle("over", depth > 0);
  };
  element.addEventListener("dragenter", () => hover(1));
  element.addEventListener("dragleave", () => hover(-1));
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    hover(-Infinity);
    receive([...event.dataTransfer.files]);
  });
}

/** A canvas cleared and scaled to its size on screen: [context, width, height] in CSS pixels. */
export function prepareCanvas(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return [context, width, height];
}

/** A colour of style.css, by the name of its custom property. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
