package enrol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// ServerName is what certificates of hosts that serve the store carry, and no
// others.
const ServerName = "server.particle"

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	hostLife      = 365 * 24 * time.Hour
	// backdate is how far a host's clock may lag behind the server's without
	// taking a fresh certificate for one of the future.
	backdate = 24 * time.Hour
)

// Authority signs the certificates of a cluster. It does not change, and is safe
// for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Subject is whom a certificate is for.
type Subject struct {
	Node    topology.NodeID
	Name    string     // host name, for people
	Address netip.Addr // the store's servers reach each other at this address
	Server  bool       // it serves the store
}

// earliest is before this was written: a clock that shows less was never set.
var earliest = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// NewAuthority makes an authority that is valid for 10 years. It is valid before, too: it
// cannot be had anew when a clock that was ahead has been set right. It fails if the clock
// cannot be right, for the authority would have ended then.
func NewAuthority(now time.Time) (*Authority, error) {
	if now.Before(earliest) {
		return nil, fault.New("make the cluster's authority", "", "this host's clock says "+stamp(now), "set it, and run the same command again: certificates depend on it")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "particle cluster"},
		NotBefore: time.Unix(0, 0), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{cert: cert, key: key}, err
}

// ReadAuthority reads what Certificate and Key have written.
func ReadAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fault.New("read the authority's key", "", "it is not PEM", "")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, &fault.Error{Op: "read the authority's key", Err: err}
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fault.New("read the authority's key", "", "it belongs to another certificate", "")
	}
	return &Authority{cert: cert, key: key}, nil
}

// Certificate gives the authority's own certificate as PEM.
func (a *Authority) Certificate() []byte { return toPEM("CERTIFICATE", a.cert.Raw) }

// Key gives the private key as PEM. Whoever has it can let hosts in.
func (a *Authority) Key() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	return toPEM("PRIVATE KEY", der), err
}

// Fingerprint names the cluster.
func (a *Authority) Fingerprint() Fingerprint { return sha256.Sum256(a.cert.Raw) }

// Issue signs a certificate for a year. The request gives the key and nothing
// else: what the certificate says is the caller's to decide.
func (a *Authority) Issue(requestPEM []byte, s Subject, now time.Time) (certPEM []byte, cert *x509.Certificate, err error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil {
		return nil, nil, fault.New("read key request", s.Name, "it is not PEM", "")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, nil, &fault.Error{Op: "read key request", On: s.Name, Err: err}
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: string(s.Node), Organization: []string{"particle"}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(hostLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if s.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = []string{ServerName}
		template.IPAddresses = []net.IP{s.Address.AsSlice()}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, request.PublicKey, a.key)
	if err != nil {
		return nil, nil, &fault.Error{Op: "sign certificate", On: s.Name, Err: err}
	}
	cert, err = x509.ParseCertificate(der)
	return toPEM("CERTIFICATE", der), cert, err
}

// Revocations signs the list of certificates that must not be used any more, in
// DER.
func (a *Authority) Revocations(list []Revoked, now time.Time) ([]byte, error) {
	template := &x509.RevocationList{
		Number: big.NewInt(now.UnixNano()), ThisUpdate: now.Add(-backdate), NextUpdate: now.Add(authorityLife),
	}
	for _, r := range list {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return nil, fault.New("revoke certificate", r.Name, "its serial number is not a number", "")
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.At})
	}
	return x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
}

// secret derives a token's secret from its nonce.
func (a *Authority) secret(nonce []byte) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, der)
	mac.Write([]byte("particle token\x00"))
	mac.Write(nonce)
	return secretText(mac.Sum(nil)[:secretBytes]), nil
}

// NewKey makes a private key and the request to have it certified, both PEM.
func NewKey() (keyPEM, requestPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return toPEM("PRIVATE KEY", der), toPEM("CERTIFICATE REQUEST", request), err
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func toPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, &fault.Error{Op: "read certificate", Err: errors.New("it is not PEM")}
	}
	return x509.ParseCertificate(block.Bytes)
}

// RequestFor makes a request for a key that there is.
func RequestFor(keyPEM []byte) ([]byte, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, &fault.Error{Op: "read key", Err: errors.New("it is not PEM")}
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, &fault.Error{Op: "read key", Err: err}
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return toPEM("CERTIFICATE REQUEST", request), err
}
