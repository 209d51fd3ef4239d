// What every page offers: its colours, and commands to copy.
const assayControls = (() => {
  "use strict";

  // The button for light and dark, and light on paper; `redraw` draws the charts in the colours of the moment.
  function theme(redraw) {
    const button = document.getElementById("theme"), root = document.documentElement;
    const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const show = () => { button.setAttribute("aria-pressed", String(isDark())); redraw(); };
    button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; show(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    // Paper is white: what is drawn for the screen's dark would be lost on it.
    let before;
    addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; redraw(); });
    addEventListener("afterprint", () => { before ? (root.dataset.theme = before) : delete root.dataset.theme; show(); });
    show();
  }

  // The buttons that copy the text beside them.
  function copying() {
    const said = document.getElementById("copied");
    for (const button of document.querySelectorAll("button.copy")) {
      const text = button.parentElement.querySelector("pre");
      button.setAttribute("aria-label", `Copy: ${text.textContent}`);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(text.textContent);
          button.textContent = "Copied";
          said.textContent = "Copied.";
        } catch { // no clipboard here: what is selected can be copied by hand
          getSelection().selectAllChildren(text);
          said.textContent = "Selected: copy it with Ctrl+C or ⌘C.";
        }
      });
    }
  }

  return { theme, copying };
})();
