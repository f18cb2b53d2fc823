# Every target works alone in a fresh clone. Variables: PYTHON, VENV, CONSTRAINTS, DETECTRON2 (see tools/setup.sh).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
export PYTHON VENV CONSTRAINTS DETECTRON2

PY := $(VENV)/bin/python

.PHONY: help setup demo test lint bench clean

help:
	@echo "make setup   install everything into the virtual environment $(VENV)"
	@echo "make demo    train the quickstart on generated shapes, evaluate, draw detections, write a report (minutes)"
	@echo "make test    run the tests"
	@echo "make lint    run ruff and mypy"
	@echo "make bench   time parts, steps and inference beside Detectron2 and torchvision (QUICK=1: small, 2 minutes)"
	@echo "make clean   remove caches and builds; trained models and generated data stay"

setup:
	@sh tools/setup.sh

# Without Detectron2 nothing can be trained, so the trained model that comes with the project shows what it can.
demo: setup
	@if $(PY) -c "import detectron2" 2>/dev/null; then \
		$(PY) train_net.py --config-file configs/quickstart.yaml --resume auto && echo && \
		echo "Look at output/quickstart/report.html, and detections.png: ground truth beside detections."; \
	else \
		echo; echo "DETECTRON2 IS NOT INSTALLED: NOTHING IS TRAINED HERE (make setup says why and what to do)."; \
		echo "Instead models/quickstart_int8.onnx, which the same recipe trained elsewhere (models/README.md),"; \
		echo "detects on images that are drawn now:"; echo; \
		$(VENV)/bin/focal-det evaluate --model models/quickstart_int8.onnx --shapes shapes_val_200_128px \
			--out output/quickstart_exported --overwrite && echo && \
		echo "Look at output/quickstart_exported/detections.png: ground truth beside detections."; \
	fi

# A process for each core, each on one thread; not more than 4, which have up to 2 GB each. A process that is done takes
# over half of what another has left, so that a file's tests and what they share stay together for the most part.
test: setup
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: setup
	$(PY) benchmarks/speed.py --json output/speed$(if $(QUICK),-quick).json $(if $(QUICK),--quick)
	@echo "The table and the charts: output/speed$(if $(QUICK),-quick).md, .png, -growth.png (the last not with QUICK)"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find focal_det tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
