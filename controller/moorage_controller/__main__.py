"""Entry point of `python -m moorage_controller` and of a bundled controller."""

from moorage_common.frozen import clean_environment

clean_environment()

from moorage_controller.cli import main  # noqa: E402 - the environment comes first: libraries read it on import

main()
