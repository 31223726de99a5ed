for (const element of document.querySelectorAll(".chart")) {
  const specification = JSON.parse(document.getElementById(element.dataset.chart).textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "page" } };
  vegaEmbed(element, specification, options).catch((error) => { element.textContent = String(error); });
}
