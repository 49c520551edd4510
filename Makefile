# make demo: see orcas detected on four channels. make test: every test, each side in its own environment.
# make bench: the figures of the README, on this machine (BENCH="--run RUN --bundle BUNDLE" for more).
# make boot: the service in a booted Debian (root only). make audit: known holes in what is installed (needs the network).
# make arm: the same detections on an emulated Raspberry Pi (root only, slow).
.PHONY: arm audit bench demo test boot edge train tflite parts lint clean
EDGE = .venv/edge/bin
TRAIN = .venv/train/bin
TFLITE = .venv/tflite/bin

demo: edge
	rm -rf orcawatch-out/demo
	$(EDGE)/orcawatch simulate orcawatch-out/demo/scene.flac --seconds 60 --seed 7 --calls 10
	$(EDGE)/orcawatch run --input orcawatch-out/demo/scene.flac --output orcawatch-out/demo
	@echo "Open the pictures in orcawatch-out/demo/snapshots: each shows what was heard beside what the network looked at."

# Two commands side by side: what the second prints is shown as it comes, what the first does (its log) after that.
beside = @$(2) >.venv/$(1).log 2>&1 & other=$$!; $(3); shown=$$?; wait $$other; code=$$?; cat .venv/$(1).log; \
	exit $$((shown | code))

# Most of what the real parts do is wait.
test: lint edge tflite train parts
	@echo "tests with real parts; beside them run all others, which are shown after them"
	$(call beside,edge,OTHER_PYTHON=$(CURDIR)/$(TFLITE)/python $(EDGE)/python -m pytest tests/edge -m "not parts",\
	$(EDGE)/python -m pytest tests/edge -m parts)
	@echo "tests of the training side; beside them run the older interpreter's, which are shown after them"
	$(call beside,tflite,$(TFLITE)/python -m pytest tests/edge -m "not parts",\
	EDGE_PYTHONS=$(CURDIR)/$(EDGE)/python:$(CURDIR)/$(TFLITE)/python $(TRAIN)/python -m pytest tests/train)

# librosa, which the front end is compared with, has an environment of its own; what needs the training's runs where it is.
bench: edge parts
	@deploy/environment.sh bench bench
	$(EDGE)/python benchmarks/bench.py $(BENCH)

boot: edge
	@tests/packages.sh debootstrap systemd-container
	$(EDGE)/python -m pytest -s tests/boot

# The exact versions of the edge's environment, asked of the public list of vulnerabilities; what could not be asked about
# is a failure, too.
audit: edge
	@test -x .venv/audit/bin/pip-audit || { python3 -m venv .venv/audit && .venv/audit/bin/pip install --quiet 'pip-audit>=2.7'; }
	$(EDGE)/python -m pip freeze | grep -v orcawatch >.venv/audit/installed.txt
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv/audit/installed.txt

arm: edge tflite
	@tests/packages.sh debootstrap qemu-user-static
	OTHER_PYTHON=$(CURDIR)/$(TFLITE)/python $(EDGE)/python -m pytest -s tests/arm

# What tests run against for real: a sound system, a broker, a proxy, service managers.
parts:
	@tests/packages.sh libportaudio2 libasound2-plugins pulseaudio pulseaudio-utils mosquitto nginx-light openssl systemd strace e2fsprogs chromium chromium-driver fonts-dejavu-core

lint: edge
	$(EDGE)/ruff check .
	$(EDGE)/ruff format --check .
	cd docs && ../$(EDGE)/mypy --config-file ../setup.cfg -p orcawatch

edge:
	@deploy/environment.sh edge test,parts

# The older interpreter alone: where both are installed, orcawatch takes ai-edge-litert.
tflite:
	@deploy/environment.sh tflite tflite-runtime,test
	@$(TFLITE)/python -m pip uninstall --quiet --yes ai-edge-litert 2>/dev/null

train:
	@deploy/environment.sh train train,baselines,test

clean:
	rm -rf .venv build orcawatch-out
