// Draws every chart of the page in the place of its picture, which stays where no script runs.
for (const figure of document.querySelectorAll("figure.chart")) {
  const view = document.createElement("div");
  const options = { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } };
  vegaEmbed(view, JSON.parse(figure.querySelector("script").textContent), options).then(() =>
    figure.querySelector("img").replaceWith(view),
  );
}
