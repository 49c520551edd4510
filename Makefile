# make demo: see orcas detected on four channels. make test: every test, each side in its own environment.
.PHONY: demo test edge train tflite lint clean
EDGE = .venv/edge/bin
TRAIN = .venv/train/bin
TFLITE = .venv/tflite/bin

demo: edge
	rm -rf orcawatch-out/demo
	$(EDGE)/orcawatch simulate orcawatch-out/demo/scene.flac --seconds 60 --seed 7 --calls 10
	$(EDGE)/orcawatch run --input orcawatch-out/demo/scene.flac --output orcawatch-out/demo
	@echo "Open the pictures in orcawatch-out/demo/snapshots: each shows what was heard beside what the network looked at."

test: lint edge tflite train
	OTHER_PYTHON=$(CURDIR)/$(TFLITE)/python $(EDGE)/python -m pytest tests/edge
	$(TFLITE)/python -m pytest tests/edge
	EDGE_PYTHONS=$(CURDIR)/$(EDGE)/python:$(CURDIR)/$(TFLITE)/python $(TRAIN)/python -m pytest tests/train

lint: edge
	$(EDGE)/ruff check .
	$(EDGE)/ruff format --check .
	cd docs && ../$(EDGE)/mypy --config-file ../setup.cfg -p orcawatch

edge:
	@deploy/environment.sh edge test

# The older interpreter alone: where both are installed, orcawatch takes ai-edge-litert.
tflite:
	@deploy/environment.sh tflite tflite-runtime,test
	@$(TFLITE)/python -m pip uninstall --quiet --yes ai-edge-litert 2>/dev/null

train:
	@deploy/environment.sh train train,baselines,test

clean:
	rm -rf .venv build orcawatch-out
