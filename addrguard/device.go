package addrguard

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Devices of a tenant namespace, as package overlay names them.
const (
	loopbackDevice = "lo"
	overlayDevice  = "vx0"
	uplinkDevice   = "up0" // sources are rewritten behind it by nftables
	branchDevices  = "pb"  // start of the names of links to containers with a namespace of their own
)

// deviceEgress is the program that packets pass on their way out of a device. On lo
// they pass one on their way in, and on others where there is IPv6 to steer.
const deviceEgress = "ping"

func devicePin(netns uint64, device, program string) string {
	return fmt.Sprintf("device-%d-%s-%s", netns, device, program)
}

// parseDevicePin undoes devicePin.
func parseDevicePin(name string) (netns uint64, program string, ok bool) {
	parts := strings.Split(name, "-")
	if len(parts) != 4 || parts[0] != "device" {
		return 0, "", false
	}
	netns, err := strconv.ParseUint(parts[1], 10, 64)
	return netns, parts[3], err == nil
}

// equip attaches the programs to the devices that are there, and writes down
// which they are. It runs inside the namespace; the pins' lock is held.
func (g *Guard) equip(netns uint64, record *guardNetwork) error {
	uplink, err := deviceIndex(uplinkDevice)
	if err != nil {
		return err
	}
	record.Uplink = uint32(uplink)
	if g.device == nil {
		return nil
	}
	for _, name := range []string{loopbackDevice, overlayDevice} {
		index, err := deviceIndex(name)
		if err != nil {
			return err
		}
		if index == 0 {
			continue
		}
		if err := g.equipDevice(netns, name, index); err != nil {
			return err
		}
	}
	return g.equipBranches(netns)
}

func (g *Guard) equipDevice(netns uint64, name string, index int) error {
	for program, prog := range g.device.Programs {
		if !g.needs(netns, name, program) { // other versions may have it there
			if err := g.unpin(devicePin(netns, name, program)); err != nil {
				return err
			}
			continue
		}
		attach := func() (link.Link, error) {
			return link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: g.device.attachType(program)})
		}
		pin := devicePin(netns, name, program)
		err := g.ensure(pin, prog, attach)
		if errors.Is(err, errNoTarget) { // a device of that name went meanwhile
			err = g.pin(filepath.Join(g.dir, pin), attach)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// needs reports whether a device of a namespace must have a program. The pins' lock is
// held.
func (g *Guard) needs(netns uint64, device, program string) bool {
	if device == loopbackDevice {
		return program != deviceEgress
	}
	return program == deviceEgress || !g.only4[netns]
}

// attachable reports whether the kernel lets programs hang on devices, by asking
// for one that does not exist.
func (p *part) attachable() error {
	_, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: p.Programs[deviceEgress], Attach: p.attachType(deviceEgress)})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// deviceIndex is 0 where there is no such device. It asks for the one: net.Interfaces
// has the kernel tell of all.
func deviceIndex(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}

// takeOverDevices puts this version's programs in place of those attached to
// devices; the pins of devices that are gone are removed. The pins' lock is held.
func (g *Guard) takeOverDevices(names []string) error {
	for _, name := range names {
		_, program, ok := parseDevicePin(name)
		if !ok {
			continue
		}
		var prog *ebpf.Program
		if g.device != nil {
			prog = g.device.Programs[program]
		}
		if prog == nil {
			if err := g.unpin(name); err != nil {
				return err
			}
			continue
		}
		err := g.ensure(name, prog, func() (link.Link, error) { return nil, errNoTarget })
		if err != nil && !isGone(err) {
			return err
		}
	}
	return nil
}

// unequip removes the programs from a namespace's devices.
func (g *Guard) unequip(netns uint64) error {
	delete(g.branches, netns)
	delete(g.only4, netns)
	names, err := g.pins()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if of, _, ok := parseDevicePin(name); ok && of == netns {
			errs = append(errs, g.unpin(name))
		}
	}
	return errors.Join(errs...)
}

// isGone reports whether a pin, or what it pinned, does not exist.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoTarget) }
