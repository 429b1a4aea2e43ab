"""What the site has beside docs/: the Markdown files of the root, as pages.

Links between them and docs/ are written for a reader of the repository, and are changed here.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root."""
    for name in ROOT_PAGES:
        text = (Path(config.config_file_path).parent / name).read_text()
        text = text.replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the root into links to their pages."""
    names = "|".join(map(re.escape, ROOT_PAGES))
    return re.sub(rf"\]\((?:\.\./)?({names})", lambda found: f"]({found[1].lower()}", markdown)
