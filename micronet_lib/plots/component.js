(() => {
  const data = __DATA__;

  for (const root of document.querySelectorAll("#__NAME__:not([data-ready])")) explore(root);

  function drawIn(svg, tag, attributes, text = "") {
    const node = document.createElementNS(svg.namespaceURI, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return svg.appendChild(node);
  }

  function explore(root) {
    root.dataset.ready = "";
    const find = selector => root.querySelector(selector);
    find(".without-script").remove();
    find(".controls").hidden = find(".sides").hidden = false;
