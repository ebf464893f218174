"""Drafts the next migration from the difference between the tables and the migrations so far.

`make migration M="add a column"`. Compares on a scratch SQLite database; read and finish by hand
what it writes, and mind that PostgreSQL runs it too.
"""

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

FOLDER = Path(__file__).resolve().parent


def draft(message: str, folder: Path = FOLDER) -> None:
    """Write the file; Alembic says where."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Config()
        config.set_main_option("script_location", str(folder))
        config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
        config.attributes["url"] = f"sqlite+aiosqlite:///{scratch}/scratch.sqlite3"
        number = len(list(ScriptDirectory.from_config(config).walk_revisions())) + 1
        command.upgrade(config, "head")
        command.revision(config, message, autogenerate=True, rev_id=f"{number:04}")


if __name__ == "__main__":
    draft(sys.argv[1])
