package pool

import (
	"errors"

	"github.com/particle-net/particle/internal/fault"
)

// The causes for which this package refuses something; errors.Is finds them in
// every error returned.
var (
	ErrExhausted = errors.New("every address is in use")
	ErrNoBlock   = errors.New("every address of this host's blocks is in use")
	ErrTaken     = errors.New("address is in use")
	ErrOutside   = errors.New("address is not in the subnet")
	ErrReserved  = errors.New("address is reserved as the first or last of its subnet, or the first of a block")
	ErrConfig    = errors.New("not a usable address range")
	ErrNoSubnet  = errors.New("no default subnet is free")
)

func refuse(op, on string, cause error) error {
	return &fault.Error{Op: op, On: on, Err: cause, Fix: remedy(cause)}
}

// remedy tells the reader of Docker's output what to do. The words are those
// of docker network create and docker run.
func remedy(cause error) string {
	switch {
	case errors.Is(cause, ErrExhausted):
		return "remove containers of this network, or create one with a larger --subnet or --ip-range"
	case errors.Is(cause, ErrNoBlock):
		return "see with `particle cluster status` whether the store answers and blocks are left"
	case errors.Is(cause, ErrTaken):
		return "choose another --ip, or omit it, or stop the container that holds it"
	case errors.Is(cause, ErrOutside):
		return "choose an --ip inside the network's --subnet"
	case errors.Is(cause, ErrReserved):
		return "choose an --ip between the first and the last address of the subnet"
	case errors.Is(cause, ErrConfig):
		return "pass a --subnet such as 10.9.0.0/24, and an --ip-range inside it if any"
	case errors.Is(cause, ErrNoSubnet):
		return "pass --subnet, or remove networks that are no longer needed"
	}
	return ""
}
