"use strict";
// What needs a script: tooltips at once and on touch, copying the command, and tables unfolded on paper.
const tip = document.getElementById("tip");

function place(x, y) {
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = x + 14 + width > document.documentElement.clientWidth ? x - 14 - width : x + 14;
  const top = y - height - 12 < 0 ? y + 18 : y - height - 12;
  tip.style.left = `${Math.max(6, Math.min(left, document.documentElement.clientWidth - width - 6))}px`;
  tip.style.top = `${top}px`;
}

function show(mark, x, y) {
  const [first, ...rest] = mark.dataset.tip.split("\n");
  const strong = document.createElement("b");
  strong.textContent = first;
  tip.replaceChildren(strong, ...rest.flatMap((line) => [document.createElement("br"), line]));
  tip.hidden = false;
  place(x, y);
}

function hide() {
  tip.hidden = true;
}

// Titles become tooltips of our own: the browser's come late, and not at all on touch.
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentElement;
  mark.dataset.tip = title.textContent;
  mark.setAttribute("aria-label", title.textContent);
  if (mark.classList.contains("s") || mark.classList.contains("front")) {
    const wide = mark.cloneNode(false); // a line is hard to hit: an invisible, thicker one above it
    wide.setAttribute("class", "hit");
    wide.removeAttribute("stroke-dasharray");
    mark.after(wide);
  }
  title.remove();
}

let isTouch = false; // whether it is a finger that points; older browsers do not say so of a click
let tapped = null; // the mark that a finger asked about last

document.addEventListener("pointerdown", (event) => { isTouch = event.pointerType === "touch"; });
document.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch") return; // a finger that moves scrolls
  const mark = event.target.closest?.("[data-tip]");
  if (mark) show(mark, event.clientX, event.clientY);
  else hide();
});
// A finger cannot hover: its first tap shows what the mark is, a second one follows the link that the mark may be.
document.addEventListener("click", (event) => {
  if (!isTouch) return;
  const mark = event.target.closest?.("[data-tip]");
  const isSecond = mark !== null && mark === tapped && !tip.hidden;
  tapped = mark;
  if (!mark) hide();
  else if (!isSecond) {
    event.preventDefault();
    show(mark, event.clientX, event.clientY);
  }
});
document.addEventListener("focusin", (event) => {
  const mark = event.target.querySelector?.(":scope > [data-tip]");
  if (!mark || !event.target.matches("a:focus-visible")) return;
  const box = mark.getBoundingClientRect();
  show(mark, box.right, box.top);
});
document.addEventListener("focusout", hide);
document.addEventListener("scroll", hide, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

// A link to a row of a folded table unfolds it.
function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const fold = target && target.closest("details");
  if (fold && !fold.open) { fold.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", unfold);
unfold();

const copy = document.getElementById("copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(document.getElementById("command").textContent);
      copy.textContent = "copied";
    } catch {
      copy.textContent = "not allowed here";
    }
    setTimeout(() => { copy.textContent = "copy"; }, 1500);
  });
}

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
