function draw(element, specification) {
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "page" } };
  return vegaEmbed(element, specification, options).catch((error) => { element.textContent = String(error); });
}
function read(id) {
  return JSON.parse(document.getElementById(id).textContent);
}
for (const element of document.querySelectorAll(".chart:not([data-numbers])")) {
  draw(element, read(element.dataset.chart)).then((drawn) => element.dispatchEvent(new CustomEvent("drawn", { detail: drawn })));
}
