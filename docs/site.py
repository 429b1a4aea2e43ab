"""What the site has beside docs/: the Markdown files of the root, and the notebooks, as pages.

Links between them and docs/ are written for a reader of the repository, and are changed here.
"""

import base64
import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root, and the notebooks with their pictures."""
    root = Path(config.config_file_path).parent
    for name in ROOT_PAGES:
        text = (root / name).read_text().replace("](docs/", "](").replace("](notebooks/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        text, pictures = page_of(notebook)
        files.append(File.generated(config, f"{notebook.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, name, content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the root, and to notebooks, into links to their pages."""
    names = "|".join(map(re.escape, ROOT_PAGES))
    markdown = re.sub(rf"\]\((?:\.\./)?({names})", lambda found: f"]({found[1].lower()}", markdown)
    return re.sub(r"\]\((?:\.\./)?(?:notebooks/)?(\w+)\.ipynb", r"](\1.md", markdown)


def page_of(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures in it by name."""
    parts, pictures = [], {}
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        said = ""
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                name = f"{notebook.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(picture))
                parts.append(f"![what the cell draws]({name})")
            elif output.get("name") == "stdout":
                said += "".join(output["text"])
        if said:
            parts.append(f"```text\n{said.rstrip()}\n```")
    source = f"This page is `notebooks/{notebook.name}`, run from top to bottom."
    return "\n\n".join([parts[0], source, *parts[1:]]) + "\n", pictures
