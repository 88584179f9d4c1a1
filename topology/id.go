package topology

import "fmt"

// NetworkID is Docker's id of a network: 64 lower-case hex digits. It names
// files and kernel objects, so only ParseNetworkID makes one from outside text.
type NetworkID string

// EndpointID is Docker's id of an endpoint, new at every start of a container.
type EndpointID string

// ContainerID is Docker's id of a container; it survives restarts.
type ContainerID string

// PoolID is our id of an address pool, unique for each request of Docker's, so
// that two tenants may hold the same subnet.
type PoolID string

// parseID goes without a regular expression: compiling one would be a third of
// a millisecond in each execution of particle-runtime.
func parseID(kind, s string) (string, error) {
	bad := len(s) < 12 || len(s) > 64
	for _, c := range []byte(s) {
		bad = bad || !('0' <= c && c <= '9' || 'a' <= c && c <= 'f')
	}
	if bad {
		return "", fmt.Errorf("%s id %q is not 12 to 64 lower-case hex digits", kind, s)
	}
	return s, nil
}

// ParseNetworkID accepts 12 to 64 lower-case hex digits.
func ParseNetworkID(s string) (NetworkID, error) {
	id, err := parseID("network", s)
	return NetworkID(id), err
}

// ParseEndpointID accepts 12 to 64 lower-case hex digits.
func ParseEndpointID(s string) (EndpointID, error) {
	id, err := parseID("endpoint", s)
	return EndpointID(id), err
}

// ParseContainerID accepts 12 to 64 lower-case hex digits.
func ParseContainerID(s string) (ContainerID, error) {
	id, err := parseID("container", s)
	return ContainerID(id), err
}

// Short is the id as Docker prints it: its first 12 digits.
func (id NetworkID) Short() string { return short(string(id)) }

// Short is the id as Docker prints it: its first 12 digits.
func (id EndpointID) Short() string { return short(string(id)) }

// Short is the id as Docker prints it: its first 12 digits.
func (id ContainerID) Short() string { return short(string(id)) }

func short(s string) string {
	if len(s) > 12 {
		return s[:12]
	}
	return s
}
