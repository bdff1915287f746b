# SPDX-License-Identifier: Apache-2.0
"""CSS and JavaScript of the raters' page: two pictures of one height, and the keys of the buttons."""

# The ids of the buttons and the keys that press them, as `KeyboardEvent.key` names them; `::after` shows them.
KEYS = {
    "left": ("1", "ArrowLeft"),
    "tie": ("2", "ArrowDown"),
    "right": ("3", "ArrowRight"),
    "both_bad": ("4", "ArrowUp"),
    "back": ("Backspace",),
}

# The widths of the pictures in a row share it as their aspect ratios do, so their heights are equal; --ratios is the
# sum of those ratios. The row's height does not depend on what has been loaded, and the buttons stay where they are.
CSS = """
.gradio-container { padding: 0 !important; }
.gradio-container .main { max-width: 1240px !important; margin: 0 auto !important;
  padding: 16px 20px 96px !important; }
.gradio-container .column { gap: 10px; }
.gradio-container .html-container { padding: 0 !important; color: var(--body-text-color); line-height: 1.4; }
#entry { max-width: 440px; margin: 24px auto; }
.study h1 { font-size: 1.25rem; font-weight: 600; margin: 0; }
.study p { margin: 2px 0 0; }
.study a { color: var(--link-text-color); text-decoration: underline; }
.study .wrong { color: var(--error-text-color); font-weight: 600; }
.progress { display: flex; justify-content: space-between; gap: 12px; font-size: 0.9rem; }
.progress .rater { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.progress #progress { white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { height: 5px; margin-top: 4px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.bar div { height: 100%; background: var(--color-accent); }
.prompt { white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; height: 5.2em; line-height: 1.35;
  padding: 8px 12px; border: 1px solid var(--border-color-primary); border-radius: 8px; font-size: 1.05rem;
  background: var(--background-fill-secondary); }
.pictures { --height: min(512px, 55vh); display: flex; justify-content: center; gap: 12px; margin: 8px auto 0;
  max-width: calc(var(--height) * var(--ratios) + 12px * (var(--columns) - 1)); }
.pictures figure { flex: var(--ratio) 1 0; min-width: 0; margin: 0; text-align: center; }
.pictures figcaption { font-size: 0.9rem; line-height: 1.6; }
.pictures .frame { width: 100%; aspect-ratio: var(--ratio); background: var(--background-fill-secondary); }
.pictures img { display: block; width: 100%; height: 100%; margin: 0; cursor: zoom-in; }
.pictures .large img { position: fixed; inset: 0; z-index: 2000; width: 100vw; height: 100vh; object-fit: contain;
  background: #000d; cursor: zoom-out; }
.thanks { text-align: center; padding: 64px 0; }
#answers { position: fixed; left: 0; right: 0; bottom: 0; z-index: 1000; justify-content: center; gap: 8px;
  flex-wrap: nowrap; padding: 10px 16px; background: var(--body-background-fill);
  border-top: 1px solid var(--border-color-primary); }
#answers button { flex: 1 1 0; max-width: 260px; min-width: 0; height: 3.6em; padding: 4px; line-height: 1.25;
  flex-direction: column; gap: 0; }
#answers #back { flex: 0.5 1 0; font-weight: 400; }
#answers button.chosen { outline: 3px solid var(--color-accent); }
#answers button::after { font-weight: 400; }
#left::after { content: "1 or \\2190"; }
#tie::after { content: "2 or \\2193"; }
#right::after { content: "3 or \\2192"; }
#both_bad::after { content: "4 or \\2191"; }
#back::after { content: "Backspace"; }
body.is-waiting #answers button { opacity: 0.45; }
@media (max-width: 700px) {
  .gradio-container .main { padding: 10px 12px 90px !important; }
  .study p { font-size: 0.85rem; }
  .prompt { font-size: 1rem; padding: 6px 10px; }
  .pictures { flex-wrap: wrap; gap: 4px 8px; margin-top: 2px; }
  .pictures .source { flex: 1 0 100%; }
  .pictures .source .frame { width: min(100%, 22vh * var(--ratio)); margin: 0 auto; }
  #answers { padding: 8px; gap: 5px; }
  #answers button { font-size: 0.9rem; }
  #answers button::after { display: none; }  /* there is no keyboard */
}
"""

# Presses count once both pictures are there and a moment has passed: the second press of a double click is not meant
# for the pair that has just appeared.
JAVASCRIPT = """
const KEYS = %(keys)s;
const MOMENT = 300;  // milliseconds; our choice
let shown = null, shownAt = 0;

function isReady() {
  const pictures = [...document.querySelectorAll(".pictures img")];
  return pictures.every(one => one.complete && one.naturalWidth > 0) && performance.now() - shownAt >= MOMENT;
}
function refresh() {
  const item = document.querySelector(".item")?.dataset.item ?? null;
  if (item !== shown) {
    [shown, shownAt] = [item, performance.now()];
    setTimeout(refresh, MOMENT + 10);
  }
  const chosen = document.querySelector(".item")?.dataset.chosen;
  document.querySelectorAll("#answers button").forEach(one => one.classList.toggle("chosen", one.id === chosen));
  document.body.classList.toggle("is-waiting", !isReady());
}
function isTyping(target) {
  return target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);
}
function shrink() {
  const large = document.querySelector(".large");
  large?.classList.remove("large");
  return large;
}
document.addEventListener("keydown", event => {
  if (event.key === "Escape") shrink();
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
  const id = Object.keys(KEYS).find(one => KEYS[one].includes(event.key));
  const button = id && document.querySelector(`#answers #${id}`);
  if (!button) return;
  event.preventDefault();
  button.click();
});
document.addEventListener("click", event => {
  if (event.target.closest("#answers button") && !isReady()) {
    event.preventDefault();
    event.stopImmediatePropagation();
    return;
  }
  const frame = event.target.closest(".frame");
  if (frame && shrink() !== frame) frame.classList.add("large");
}, true);
document.addEventListener("load", refresh, true);
function watch() {
  new MutationObserver(refresh).observe(document.body, {childList: true, subtree: true, characterData: true});
  refresh();
}
if (document.body) watch();
else document.addEventListener("DOMContentLoaded", watch);
"""

# Who reloads the page goes on under the same name.
REMEMBER_RATER = """ticket => {
  if (!ticket) return;
  const address = new URL(window.location.href);
  address.searchParams.set("rater", JSON.parse(ticket).rater);
  window.history.replaceState(null, "", address);
}"""
