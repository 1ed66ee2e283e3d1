"use strict";
// The blind rating mode. It reads the picture book that stands in the page, one card at a time, hides which model wrote
// what, and keeps every rating in the browser under the report's own id until it is saved as ratings.json.
const results = document.getElementById("results");
const rate = document.getElementById("rate");
const report = rate.dataset.report;
const cards = [...document.querySelectorAll(".card[data-order]")];
const key = `clipcap-ratings-${report}`;
let ratings = load(); // {image: {model: 0..5}}
let current = 0;

function load() {
  try {
    return JSON.parse(localStorage.getItem(key)) || {};
  } catch {
    return {};
  }
}

function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(ratings));
  } catch {
    document.getElementById("warning").hidden = false;
  }
}

const rated = (card) => Object.keys(ratings[card.dataset.image] || {}).length;
const complete = (card) => rated(card) === card.querySelectorAll("[data-model]").length;

function progress() {
  const done = cards.filter(complete).length;
  document.getElementById("done").max = cards.length;
  document.getElementById("done").value = done;
  document.getElementById("count").textContent = `${done} of ${cards.length} rated`;
  document.getElementById("save").disabled = !cards.some(rated);
}

function show(number) {
  current = Math.max(0, Math.min(number, cards.length - 1));
  const card = cards[current];
  const picture = document.getElementById("picture");
  picture.src = card.querySelector("img").src;
  picture.alt = `picture ${current + 1} of ${cards.length}`;
  document.getElementById("captions").replaceChildren(...shuffled(card).map((group, place) => scale(card, group, place)));
  document.getElementById("previous").disabled = current === 0;
  document.getElementById("next").disabled = current === cards.length - 1;
  progress();
}

// [[caption, its models]] in the card's own order: what several models wrote alike is rated once, for all of them.
function shuffled(card) {
  const models = [...card.querySelectorAll("[data-model]")];
  const groups = new Map();
  for (const model of card.dataset.order.split(" ").map((index) => models[index])) {
    const caption = model.querySelector("dd").textContent;
    groups.set(caption, [...(groups.get(caption) || []), model.dataset.model]);
  }
  return [...groups];
}

function scale(card, [caption, models], place) {
  const field = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = caption || "(no caption)";
  legend.dir = "auto";
  const buttons = document.createElement("div");
  buttons.className = "scale";
  for (let rating = 0; rating <= 5; rating++) {
    const label = document.createElement("label");
    const radio = document.createElement("input");
    const text = document.createElement("span");
    radio.type = "radio";
    radio.name = `caption-${place}`;
    radio.value = rating;
    radio.checked = ratings[card.dataset.image]?.[models[0]] === rating;
    radio.addEventListener("change", () => {
      for (const model of models) (ratings[card.dataset.image] ||= {})[model] = rating;
      keep();
      progress();
    });
    text.textContent = rating;
    label.append(radio, text);
    buttons.append(label);
  }
  field.append(legend, buttons);
  return field;
}

// A digit rates the caption in focus, or the first without a rating, and moves on; N and P turn the page.
function typed(event) {
  if (rate.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[0-5]$/.test(event.key)) {
    const fields = [...document.querySelectorAll("#captions fieldset")];
    const open = (field) => !field.querySelector(":checked");
    const field = document.activeElement.closest?.("#captions fieldset") || fields.find(open);
    if (!field) return;
    field.querySelector(`[value="${event.key}"]`).click();
    const next = fields.find(open);
    if (next) next.querySelector("input").focus();
    else (document.querySelector("#next:enabled") || document.getElementById("save")).focus();
  } else if (event.key.toLowerCase() === "n") {
    turn(1);
  } else if (event.key.toLowerCase() === "p") {
    turn(-1);
  }
}

function turn(step) {
  show(current + step);
  window.scrollTo(0, 0);
  document.querySelector("#captions input:checked, #captions input")?.focus({ preventScroll: true });
}

function save() {
  const content = JSON.stringify({ format: 1, report, ratings }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = "ratings.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function startOver() {
  if (!confirm("Forget every rating made in this browser?")) return;
  ratings = {};
  keep();
  show(0);
}

function route() {
  const rating = location.hash === "#rate" && cards.length > 0;
  rate.hidden = !rating;
  results.hidden = rating;
  if (!rating) return;
  const first = cards.findIndex((card) => !complete(card));
  show(first < 0 ? 0 : first);
  window.scrollTo(0, 0);
}

document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
document.getElementById("save").addEventListener("click", save);
document.getElementById("start-over").addEventListener("click", startOver);
document.addEventListener("keydown", typed);
window.addEventListener("hashchange", route);
window.addEventListener("storage", (event) => {
  if (event.key !== key) return; // another tab has rated
  ratings = load();
  if (!rate.hidden) show(current);
});
route();
