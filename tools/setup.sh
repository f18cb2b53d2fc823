#!/bin/sh
# Make the virtual environment: PyTorch, Detectron2, this project. `make setup` calls it; the second time it is quick.
#
#   VENV         folder of the environment
#   PYTHON       interpreter to make it with, 3.10 to 3.13
#   CONSTRAINTS  file of pinned versions; empty for none
#   DETECTRON2   a wheel, a checkout or a requirement with a direct reference, to install Detectron2 from
set -eu

repository=https://github.com/facebookresearch/detectron2.git
commit=02b5c4e295e990042a714712c21dc79b731e8833
pip="$VENV/bin/python -m pip --disable-pip-version-check"
constraints=${CONSTRAINTS:+-c $CONSTRAINTS}
ready="$VENV/.ready"

step() { printf '\n== %s\n' "$1"; }

has_detectron2() { "$VENV/bin/python" -c 'import detectron2' 2>/dev/null; }

# A package of that name on an index would be somebody else's, so no index is ever asked.
install_detectron2() { $pip install --no-index --no-deps --no-build-isolation "$@"; }

fresh=
if [ ! -f "$ready" ] || [ setup.py -nt "$ready" ] || [ "${CONSTRAINTS:-setup.py}" -nt "$ready" ]; then
    step "1/3 virtual environment $VENV, PyTorch (some gigabytes: minutes)"
    "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
        echo "$PYTHON is $("$PYTHON" --version 2>&1); Python 3.10 to 3.13 is needed: make setup PYTHON=<interpreter>" >&2
        exit 2
    }
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
    $pip install $constraints 'setuptools<81' wheel torch torchvision
    step "2/3 focal_det and what it needs"
    # an environment of before had OpenCV's other build; two of them overwrite each other's files
    if $pip show -q opencv-python-headless 2>/dev/null; then
        $pip uninstall -q -y opencv-python-headless opencv-python
    fi
    $pip install $constraints --no-build-isolation -e '.[dev]'
    touch "$ready"
    fresh=1
fi

if [ -n "${DETECTRON2:-}" ]; then
    step "3/3 Detectron2 from $DETECTRON2"
    install_detectron2 --force-reinstall "$DETECTRON2" || {
        echo "DETECTRON2=$DETECTRON2 cannot be installed; give a wheel, a checkout, or 'detectron2 @ <address>'" >&2
        exit 2
    }
elif ! has_detectron2; then
    step "3/3 Detectron2 from pip's wheel folders, else from its repository (compiles: minutes)"
    install_detectron2 detectron2 || install_detectron2 "detectron2 @ git+$repository@$commit" || true
    has_detectron2 || cat >&2 <<END

Detectron2 could not be installed: it is on no package index, pip's wheel folders (find-links) hold no wheel of it, and
$repository could not be fetched or compiled (the lines above say why).
The losses and the rest of the mathematics work without it, and so do exported models (focal-det predict --model);
training does not. Give it with \`make setup DETECTRON2=<wheel or checkout>\`; its INSTALL.md says how to make a wheel:
with this environment's PyTorch, setuptools<81 and --no-build-isolation, from commit $commit.

END
fi

if [ -n "$fresh" ] && has_detectron2; then
    printf '\nReady. `. %s/bin/activate` puts python and focal-det on the path; `focal-det doctor` says what works here.\n' "$VENV"
fi
