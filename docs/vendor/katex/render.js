// Renders the formulas that pymdownx.arithmatex leaves as \(...\) and \[...\]. Nothing is loaded from elsewhere.
document.querySelectorAll(".arithmatex").forEach((element) => {
  const text = element.textContent.trim();
  katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\["), throwOnError: false });
});
