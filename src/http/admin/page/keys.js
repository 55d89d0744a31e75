// Keys and the theme.

import { byId, mark, write } from "./dom.js";

const SECTIONS = ["backends", "requests", "events", "supervisor", "gateway"];
const THEMES = ["system", "light", "dark"];

export function listen() {
  document.addEventListener("keydown", onKey);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("theme").addEventListener("click", nextTheme);
  for (const dialog of document.querySelectorAll("dialog"))
    dialog.addEventListener("click", (event) => closeOutside(dialog, event));
  tellTheme();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("page").hidden) return;
  if (event.key === "Escape" && event.target.id === "filter") return clear(event.target);
  const isBusy = document.querySelector("dialog[open]") !== null || event.target.matches("input, select, textarea");
  if (isBusy) return;
  const act = keyAct(event.key);
  if (act === null) return;
  event.preventDefault();
  act();
}

function keyAct(key) {
  if (key === "/") return () => byId("filter").focus();
  if (key === "i") return () => byId("find-id").focus();
  if (key === "t") return nextTheme;
  if (key === "?") return () => byId("keys").showModal();
  const section = SECTIONS[Number(key) - 1];
  return section === undefined ? null : () => goTo(byId(section));
}

function goTo(section) {
  section.scrollIntoView();
  section.focus({ preventScroll: true });
}

function clear(input) {
  input.value = "";
  input.dispatchEvent(new Event("input"));
  input.blur();
}

function closeOutside(dialog, { target, clientX: x, clientY: y }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  const isOutside = x < left || x > right || y < top || y > bottom;
  if (target === dialog && isOutside) dialog.close();
}

function theme() {
  return document.documentElement.dataset.theme ?? "system";
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  mark(document.documentElement, "data-theme", next === "system" ? null : next);
  try {
    localStorage.setItem("stagedoor-theme", next);
  } catch {
    // Without storage the choice lasts as long as the page.
  }
  tellTheme();
}

function tellTheme() {
  write(byId("theme"), `Theme: ${theme()}`);
}
