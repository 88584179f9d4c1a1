// Package rawjson reads and edits JSON documents in place: it tells where values
// are and leaves the bytes alone.
//
// It exists for two reasons. An edit must keep what it does not name byte for
// byte, which no decoder and encoder pair does. And particle-runtime lives for a
// millisecond: building encoding/json's decoders for a handful of fields costs
// it several times that of walking the document once.
//
// A value that nobody asks for is skipped by counting brackets and minding
// strings. Whether it is well-formed is for those to say who read it.
package rawjson
