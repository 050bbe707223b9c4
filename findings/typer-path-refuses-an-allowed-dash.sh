#!/bin/sh
# typer 0.29.2, which has its own copy of click: an argument of pathlib.Path with exists=True and allow_dash=True refuses
# "-". It makes a Path of the text first and then compares that with "-", which a Path never equals. click's own
# Path(exists=True, allow_dash=True, path_type=Path) takes it, and so did typer 0.20.0, which called click's.
# Fails if that changes. Seen on Python 3.11, click 8.3.1.
#
# What it printed:
#   typer 0.20.0: exit status 0, got '-'
#   typer 0.29.2: exit status 2, Invalid value for 'file': path '-' does not exist.
#   click 8.3.1: exit status 0, got '-'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/with_typer.py" <<'PY'
from pathlib import Path
from typing import Annotated

import typer


def main(file: Annotated[Path, typer.Argument(exists=True, allow_dash=True)]) -> None:
    print(f"got {str(file)!r}")


typer.run(main)
PY
cat > "$folder/with_click.py" <<'PY'
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(exists=True, allow_dash=True, path_type=Path))
def main(file: Path) -> None:
    print(f"got {str(file)!r}")


main()
PY
told() {
    status=0
    "$folder/$2/bin/python" "$folder/$1.py" - > "$folder/said" 2>&1 || status=$?
    said=$(grep -o "got '-'\|Invalid value.*exist\." "$folder/said" || true)
    echo "exit status $status, $said"
}
for version in 0.20.0 0.29.2; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --disable-pip-version-check "typer==$version" click==8.3.1
done
old=$(told with_typer 0.20.0)
new=$(told with_typer 0.29.2)
click=$(told with_click 0.29.2)
echo "typer 0.20.0: $old"
echo "typer 0.29.2: $new"
echo "click 8.3.1: $click"
taken="exit status 0, got '-'"
[ "$old" = "$taken" ] && [ "$click" = "$taken" ]
[ "$new" = "exit status 2, Invalid value for 'file': path '-' does not exist." ]
