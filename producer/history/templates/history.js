"use strict";
const jobs = JSON.parse(document.getElementById("details").textContent);
const tip = document.getElementById("tip");
const calendars = [...document.querySelectorAll(".calendar")];

function part(name, text) {
  const element = document.createElement(name);
  element.textContent = text; // never markup: reasons and names come from users' tables
  return element;
}

function fill(cell) {
  const job = calendars.indexOf(cell.closest(".calendar"));
  const [day, kind, coverage, source, sourceReason, reason, run, duration, missing, unlisted, results, attempt, published, replacement] = jobs[job][cell.dataset.i];
  const list = document.createElement("dl");
  const line = (name, text) => { if (text) list.append(part("dt", name), part("dd", text)); };
  line("reason", reason);
  line("source", sourceReason ? `${source}: ${sourceReason}` : source);
  line("missing", unlisted ? `${missing} and ${unlisted} more` : missing);
  line("rows", replacement);
  line("run", run);
  line("took", attempt > 1 ? `${duration}, at attempt ${attempt}` : duration);
  line("published", published);
  line("results", results > 1 ? `${results} runs had this date; this is the latest` : "");
  tip.replaceChildren(part("b", `${day} · ${kind}`), part("strong", coverage || "no coverage"), list);
}

function show(cell) {
  hide();
  fill(cell);
  tip.hidden = false;
  const at = cell.getBoundingClientRect(), box = tip.getBoundingClientRect();
  const above = at.top - box.height - 8;
  const left = Math.min(Math.max(at.left + at.width / 2 - box.width / 2, 8), innerWidth - box.width - 8);
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${above >= 8 ? above : at.bottom + 8}px`;
  cell.setAttribute("aria-describedby", "tip");
}

function hide() {
  tip.hidden = true;
  for (const cell of document.querySelectorAll("[aria-describedby=tip]")) cell.removeAttribute("aria-describedby");
}

function nearest(cells, from, days) {
  const target = Date.parse(from.dataset.d) + days * 864e5;
  const ahead = cells.filter((cell) => Math.sign(Date.parse(cell.dataset.d) - Date.parse(from.dataset.d)) === Math.sign(days));
  const distance = (cell) => Math.abs(Date.parse(cell.dataset.d) - target);
  return ahead.reduce((best, cell) => (best && distance(best) <= distance(cell) ? best : cell), null);
}

for (const calendar of calendars) {
  const cells = [...calendar.querySelectorAll(".d")];
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -7, ArrowDown: 7, PageUp: -28, PageDown: 28 };
  const go = (to) => {
    for (const cell of cells) if (cell.tabIndex === 0) cell.tabIndex = -1;
    to.tabIndex = 0; // one stop of the Tab key for the whole calendar; arrows move within it
    to.focus();
  };
  if (cells.length) cells.at(-1).tabIndex = 0;
  calendar.addEventListener("mouseover", (event) => { const cell = event.target.closest(".d"); if (cell) show(cell); else hide(); });
  calendar.addEventListener("mouseleave", hide);
  calendar.addEventListener("focusin", (event) => show(event.target));
  calendar.addEventListener("focusout", hide);
  calendar.addEventListener("click", (event) => { const cell = event.target.closest(".d"); if (cell) go(cell); });
  calendar.addEventListener("keydown", (event) => {
    const to = event.key === "Home" ? cells[0] : event.key === "End" ? cells.at(-1)
      : moves[event.key] ? nearest(cells, event.target, moves[event.key]) : null;
    if (event.key === "Escape") hide();
    if (to) { event.preventDefault(); go(to); }
  });
}
function follow() { // also the scroll that brings a cell into view which the keyboard has reached
  const cell = document.querySelector("[aria-describedby=tip]");
  if (!cell) return;
  const at = cell.getBoundingClientRect();
  if (at.bottom < 0 || at.top > innerHeight) hide(); else show(cell);
}
addEventListener("scroll", follow, { passive: true });
