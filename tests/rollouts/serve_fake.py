"""The server of the standard library in the place of vLLM's: what a run that starts its server starts in tests."""

import argparse

from multiref_cli.config.schema import Model
from multiref_cli.models.load import load_causal_lm, load_tokenizer
from tests.references.fake_server import FakeServer


def main():
    """Serve a folder until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    options, _ = parser.parse_known_args()
    model = Model(path=options.model)
    name, port = options.served_model_name, options.port
    FakeServer(load_causal_lm(model), load_tokenizer(model), name, port).serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
