"""`python -m moorage_controller` is `moorage-controller`; a bundled controller begins here, too."""

from moorage_common.frozen import clean_environment

clean_environment()

from moorage_controller.cli import main  # noqa: E402 - the environment comes first: libraries read it when imported

main()
