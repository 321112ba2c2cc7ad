# Two commands: `make run` (the main job) and `make test`. Each sets up what it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/glyphs.py
ARGS ?=
EXTRAS ?= dev

# pdoc cannot read these annotations, which are those of TFDS and chex.
FOREIGN := utils.VersionOrStr list[utils.VersionOrStr] typing.Union[jax

.PHONY: run test demo lint docs notebooks setup clean

run: setup
	$(BIN)/python launch/main.py --config=$(CONFIG) $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

demo: setup  # a gallery is indexed, served, upgraded while queries run, and rolled back
	$(BIN)/python -m iamcl2r_jax.programs.demo $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# pdoc would refuse what matplotlib runs on its first import, to find the system's typefaces.
docs: setup  # the API reference, in build/docs
	PDOC_ALLOW_EXEC=1 $(BIN)/python -W error::UserWarning \
	    $(foreach type,$(FOREIGN),-W "ignore:Error parsing type annotation $(type)") \
	    -m pdoc --docformat google --template-directory docs/pdoc --output-directory build/docs iamcl2r_jax

notebooks: setup  # runs them at full size and keeps their outputs
	$(BIN)/python notebooks/run.py $(ARGS)

setup: $(VENV)/.installed-$(EXTRAS)

# A stamp, so that the second command installs nothing; new requirements install again.
$(VENV)/.installed-$(EXTRAS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed (make PYTHON=...)"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV)
