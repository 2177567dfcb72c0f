"""The commands by name, and what help says of all of them; imports nothing: help has to appear at once."""

__all__ = ("COMMANDS", "EPILOG", "HELP")

HELP = "Say where each millisecond of a federated-learning round goes, measured from the kernel."
# Name -> its module here, and the first sentence of its help, so that a list of all imports none.
COMMANDS = {
    "trace": ("trace", "Run a deployment and say where each round's time went."),
    "attach": ("attach", "Show which servers run here that `ztprobe trace --attach` could trace."),
    "sweep": ("sweep", "Run a whole study: every combination of its factors."),
    "reproduce": ("reproduce", "Run a published study's corners anew and say whether they agree."),
    "limits": ("limits", "Find out where a deployment stops working, and what breaks."),
    "report": ("report", "Analyse saved runs again, without root."),
    "compare": ("compare", "Say how runs differ from the first, part by part, with intervals."),
    "whatif": ("whatif", "Predict how long rounds would take without a component."),
    "export": ("export", "Write a run's results for other programs and for papers."),
    "drops": ("drops", "List packets that a kernel dropped, in a saved run or right now."),
    "diagnose": ("diagnose", "Say why rounds of a saved run failed, stalled or were slow."),
    "profile": ("profile", "Put network conditions on running pods, verified, and undone."),
    "policy": ("policy", "Explain and check NetworkPolicies and their cluster-wide kin."),
    "agent": ("agent", "Run the agent as a service, and ask one how it is."),
    "deploy": ("deploy", "Put the agent or an experiment's workload on a cluster."),
    "undeploy": ("deploy", "Remove what `ztprobe deploy` has put on a cluster."),
    "doctor": ("doctor", "Say what this machine offers, and whether the main job can run."),
    "clean": ("clean", "Remove whatever an interrupted run left."),
    "validate": ("validate", "Put known costs into real runs and hold the ledger against them."),
}
# Paragraphs.
EPILOG = (
    "Example: sudo ztprobe trace --experiment net2-sec3",
    "Exit codes: 0 done, 1 something else failed, 2 the command line, a profile or a manifest is wrong,"
    " 3 this machine lacks something, 4 a run directory is incomplete, or results cannot be written, 5 a"
    " control or a profile was not in force, 6 the workload failed, 7 validate found an error beyond its"
    " bound, 70 a bug, 129, 130, 141 and 143 ended by a closed terminal, Ctrl-C, a closed pipe, SIGTERM.",
    "Environment: ZTPROBE_STATE_DIR (runs' records, instead of /run/ztprobe), KUBECONFIG, NODE_NAME,"
    ' NO_COLOR. Completion in bash: eval "$(_ZTPROBE_COMPLETE=bash_source ztprobe)"; zsh and fish likewise.',
)
