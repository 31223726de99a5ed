const classes = document.getElementById("class-list");

// Pictures stand in the page once, whatever shows them.
let pictures;
function show(place) {
  pictures ??= read("pictures");
  for (const image of place.querySelectorAll("img[data-picture]:not([src])")) {
    image.src = `data:image/jpeg;base64,${pictures[image.dataset.picture]}`;
  }
  for (const image of place.querySelectorAll("img[data-heat]:not([src])")) {
    image.src = `data:image/png;base64,${image.dataset.heat}`;
  }
}

// Numbers stand in columns; a plot wants rows.
function rows(columns) {
  const names = Object.keys(columns);
  return names.length ? columns[names[0]].map((_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]]))) : [];
}

function open(section) {
  if (section.dataset.drawn) return;
  section.dataset.drawn = "true";
  show(section);
  const numbers = JSON.parse(section.querySelector("script.plotted").textContent);
  for (const element of section.querySelectorAll(".chart[data-numbers]")) {
    const datasets = Object.entries(numbers[element.dataset.numbers]).map(([name, columns]) => [name, rows(columns)]);
    const specification = read(element.dataset.chart);
    draw(element, { ...specification, datasets: { ...specification.datasets, ...Object.fromEntries(datasets) } });
  }
}

function go(id) {
  const section = document.getElementById(id);
  if (!section?.matches("details")) return;
  section.hidden = false;
  section.open = true;
  section.scrollIntoView({ block: "start" });
}

for (const section of classes.children) {
  section.addEventListener("toggle", () => section.open && open(section));
}
for (const place of document.querySelectorAll(".shown")) show(place);
addEventListener("hashchange", () => go(location.hash.slice(1)));
go(location.hash.slice(1));
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#class-']");
  if (link && link.hash === location.hash) go(link.hash.slice(1));  // the address does not change then
});

const tail = document.querySelector("[data-chart='chart-long-tail']");
tail?.addEventListener("drawn", ({ detail }) => detail?.view.addEventListener("click", (_, item) => {
  const label = item?.datum?.label;
  if (label === undefined) return;
  if (location.hash === `#class-${label}`) go(`class-${label}`);
  else location.hash = `class-${label}`;
}));

const order = document.querySelectorAll("button[data-sort]");
for (const button of order) {
  button.addEventListener("click", () => {
    const key = button.dataset.sort, before = button.getAttribute("aria-sort");
    const falling = before ? before === "ascending" : button.dataset.first === "descending";
    for (const other of order) other.removeAttribute("aria-sort");
    button.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (section) => (key === "name" ? section.dataset.name : parseFloat(section.dataset[key]));
    const compared = (a, b) => (key === "name" ? a.localeCompare(b) : a - b);
    const sections = [...classes.children].sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second);
      return (falling ? -1 : 1) * compared(first, second);
    });
    classes.append(...sections);
  });
}

const wanted = document.getElementById("wanted"), counted = document.getElementById("counted");
function filter() {
  const words = wanted.value.trim().toLowerCase();
  const group = document.querySelector("input[name='group']:checked").value;
  let number = 0;
  for (const section of classes.children) {
    section.hidden = !section.dataset.name.includes(words) || (group !== "" && section.dataset.group !== group);
    number += !section.hidden;
  }
  counted.textContent = number === classes.children.length ? "" : `${number} of ${classes.children.length}`;
}
wanted.addEventListener("input", filter);
for (const radio of document.querySelectorAll("input[name='group']")) radio.addEventListener("change", filter);
