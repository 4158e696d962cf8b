"""Container engines, as their own commands and files tell of them."""

# Of this very host, whatever context root has chosen or containers.conf says: another's is not to be judged or pruned.
COMMANDS = {"docker": ("docker", "--context", "default"), "podman": ("podman", "--remote=false")}
