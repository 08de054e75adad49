(() => {
  const data = __DATA__;

  for (const root of document.querySelectorAll("#__NAME__:not([data-ready])")) explore(root);

  function explore(root) {
    root.dataset.ready = "";
    const find = selector => root.querySelector(selector);
    find(".without-script").remove();
    find(".controls").hidden = find(".sides").hidden = false;
