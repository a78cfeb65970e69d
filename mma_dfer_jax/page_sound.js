// Runs beside page.js, in the thread that the browser keeps for sound: hands on each block of the microphone's first channel.
registerProcessor("blocks", class extends AudioWorkletProcessor {
  process([microphone]) {
    if (microphone.length) this.port.postMessage(microphone[0].slice());
    return true;
  }
});
