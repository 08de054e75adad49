/* The search page shows where the words stand, also where the book is read from files: excerpts, and
   below each page its sections with all the words. `search_texts.js` holds the text of all pages. */
(() => {
  const texts = window.BOOK_TEXTS || {};
  const escaped = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const pageOf = url => String(url).replace(/^.*\//, "").replace(/\.html.*$/, "");

  // Sphinx's own script fetches a page for its excerpt, which a browser refuses for files.
  const fetched = window.fetch;
  window.fetch = (url, ...more) => {
    const sections = texts[pageOf(url)];
    if (location.protocol !== "file:" || !sections) return fetched(url, ...more);
    const html = sections.map(({ anchor, title, text }) =>
      `<section id="${anchor}"><h2>${escaped(title)}</h2><p>${escaped(text)}</p></section>`);
    return Promise.resolve(new Response(`<div role="main">${html.join("")}</div>`));
  };

  const words = (new URLSearchParams(location.search).get("q") || "")
    .toLowerCase().split(/\s+/).filter(Boolean);

  function addSections(item) {
    const link = item.querySelector("a[href]"), href = link && link.getAttribute("href");
    if (!link || href.includes("#") || item.querySelector(".search-sections")) return;
    const page = pageOf(href);
    const found = (texts[page] || []).slice(1).filter(({ title, text }) =>
      words.every(word => `${title} ${text}`.toLowerCase().includes(word)));
    if (!found.length) return;
    const list = document.createElement("ul");
    list.className = "search-sections";
    for (const { anchor, title } of found.slice(0, 4)) {
      const entry = list.appendChild(document.createElement("li")).appendChild(document.createElement("a"));
      entry.href = `${page}.html#${anchor}`;
      entry.textContent = title;
    }
    item.append(list);
  }

  document.addEventListener("DOMContentLoaded", () => {
    const results = document.querySelector("#search-results");
    if (!results || !words.length) return;
    new MutationObserver(() => results.querySelectorAll("ul.search > li").forEach(addSections))
      .observe(results, { childList: true, subtree: true });
  });
})();
