package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wireLike makes one end of a veth pair take packets of its MTU alone, and put
// those it receives together.
func (s *space) wireLike(name string) error {
	err := s.do(func() error {
		return errors.Join(toggle(name, unix.ETHTOOL_STSO, 0), toggle(name, unix.ETHTOOL_SGSO, 0), toggle(name, unix.ETHTOOL_SGRO, 1),
			withdraw(name, "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"))
	})
	if err != nil {
		return fmt.Errorf("make a wire of %s: %w", name, err)
	}
	return nil
}

// toggle sets one of a link's old offloads (struct ethtool_value of
// linux/ethtool.h, as are the others below).
func toggle(name string, command, value uint32) error {
	return ethtool(name, words(command, value))
}

const (
	mostFeatures = 256
	featureName  = 32 // bytes
	featureSet   = 4  // ETH_SS_FEATURES
)

// withdraw switches off features of a link that it has by these names.
func withdraw(name string, features ...string) error {
	const head = 12
	names := append(words(unix.ETHTOOL_GSTRINGS, featureSet, 0), make([]byte, mostFeatures*featureName)...)
	if err := ethtool(name, names); err != nil {
		return err
	}
	count := int(binary.NativeEndian.Uint32(names[8:]))
	blocks := (count + 31) / 32
	request := append(words(unix.ETHTOOL_SFEATURES, uint32(blocks)), make([]byte, blocks*8)...) // of each: valid, requested
	for i := range count {
		text := unix.ByteSliceToString(names[head+i*featureName:][:featureName])
		if slices.Contains(features, text) {
			at := request[8+i/32*8:]
			binary.NativeEndian.PutUint32(at, binary.NativeEndian.Uint32(at)|1<<(i%32))
		}
	}
	return ethtool(name, request)
}

func words(list ...uint32) (data []byte) {
	for _, w := range list {
		data = binary.NativeEndian.AppendUint32(data, w)
	}
	return data
}

// ethtool makes a request of a link's driver, which answers in its place.
func ethtool(name string, request []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		rest [16]byte
	}{data: unsafe.Pointer(&request[0])}
	copy(ifreq.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	runtime.KeepAlive(request)
	if errno != 0 {
		return fmt.Errorf("ethtool %#x: %w", binary.NativeEndian.Uint32(request), errno)
	}
	return nil
}
