// Light or dark: what the system says, until somebody says otherwise. Runs before all is shown.

(() => {
  const NAMES = ["system", "light", "dark"];
  const KEY = "edgekit-theme";
  const root = document.documentElement;

  function read() {
    try {
      return NAMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";
    } catch {
      return "system";
    }
  }

  function apply(name) {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
  }

  function keep(name) {
    try {
      if (name === "system") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, name);
    } catch {
      // a browser that keeps nothing follows the system the next time
    }
  }

  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = read();
    select.addEventListener("change", () => {
      apply(select.value);
      keep(select.value);
    });
  });
})();
