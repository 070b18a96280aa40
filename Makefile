.PHONY: demo setup test docs

setup:
	bash tools/setup_env.sh

demo:
	bash tools/demo.sh

test:
	bash tools/run_tests.sh

# The documentation, into site/; warnings and dead links between its pages are errors.
docs: setup
	$${VIG_MM_VENV:-.venv}/bin/python -m sphinx -W --keep-going -E -q -b html docs site
	@echo "open site/index.html"
