"use strict";
// Tabs over the sections. Without this script all sections stand below each other, as in print.
(() => {
  const bar = document.querySelector("nav");
  const tabs = [...bar.querySelectorAll("a")];
  const panels = tabs.map((tab) => document.querySelector(tab.getAttribute("href")));
  bar.setAttribute("role", "tablist");
  tabs.forEach((tab, k) => {
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[k].id);
    panels[k].setAttribute("role", "tabpanel");
    panels[k].setAttribute("aria-labelledby", tab.id);
  });

  function show(chosen) {
    tabs.forEach((tab, k) => {
      tab.setAttribute("aria-selected", String(k === chosen));
      tab.tabIndex = k === chosen ? 0 : -1;
      panels[k].hidden = k !== chosen;
    });
    panels[chosen].dispatchEvent(new CustomEvent("shown"));
  }

  function choose(k) {
    const chosen = (k + tabs.length) % tabs.length;
    history.replaceState(null, "", tabs[chosen].getAttribute("href"));
    show(chosen);
    tabs[chosen].focus();
  }

  bar.addEventListener("click", (event) => {
    const k = tabs.indexOf(event.target.closest("a"));
    if (k < 0) return;
    event.preventDefault();
    choose(k);
  });
  bar.addEventListener("keydown", (event) => {
    const here = tabs.indexOf(document.activeElement);
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs.length - 1 };
    if (!(event.key in next)) return;
    event.preventDefault();
    choose(next[event.key]);
  });
  const open = () => show(Math.max(0, tabs.findIndex((t) => t.getAttribute("href") === location.hash)));
  addEventListener("hashchange", open);
  addEventListener("DOMContentLoaded", open); // after the scripts that wait for "shown"
})();
