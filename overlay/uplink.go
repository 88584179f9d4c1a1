package overlay

// uplinkPrefix starts the names of uplinks' ends on the host.
const uplinkPrefix = "pu"
